#include "cli/run.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "cli/json_answer.h"
#include "cli/options.h"
#include "cli/show.h"

namespace r1v::cli {
namespace {

constexpr size_t kMaxQuestionBytes = 1 << 20;
constexpr char kCommands[] = "/image PATH shows an image with the next question; /exit or the end of the input ends";

std::string stripped(const std::string& text) {
  const char* space = " \t\n\v\f\r";
  const size_t first = text.find_first_not_of(space);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(space) - first + 1);
}

std::string question_of(const RunArguments& arguments) {
  if (arguments.question.empty()) {
    fail_usage("There is no question: add one, such as \"What do you see?\", or pass --chat for a conversation.");
  }
  if (arguments.question != "-") return arguments.question;
  if (isatty(STDIN_FILENO) != 0)
    std::cerr << "the question is read from the terminal; end it with Ctrl-D on a line of its own" << std::endl;
  const std::string text = stripped(read_stdin(kMaxQuestionBytes, "The question"));
  if (text.empty()) fail_usage("There is no question on stdin: pipe one in, such as \"What do you see?\".");
  return text;
}

void require_stdin_once(const RunArguments& arguments) {
  const auto images = std::count(arguments.images.begin(), arguments.images.end(), "-");
  if (images + (arguments.chat || arguments.question == "-") > 1) fail_usage("Standard input can be read once.");
  if (images > 0 && isatty(STDIN_FILENO) != 0)
    fail_usage("An image is not read from a terminal: pipe one in, or name a file.");
  if (arguments.chat && !arguments.question.empty())
    fail_usage("A conversation takes its questions from stdin: omit QUESTION.");
}

void print_json(const api::Answer& answer, const r1v_sampling& sampling, const RunArguments& arguments) {
  OrderedJson document = answer_json(answer, sampling);
  if (arguments.answer_only) document.erase("reasoning");
  std::cout << json_text(document, arguments.chat) << std::endl;
}

// Asks the last turn, and adds the answer to the turns.
void ask(api::Engine& engine, std::vector<api::Turn>* turns, const api::RequestOptions& options,
         const RunArguments& arguments) {
  const bool streamed = arguments.format == "text";
  Show show(arguments.answer_only);
  const api::Answer answer = value_of(engine.answer(*turns, options, [&](const api::Event& event) {
    if (streamed) show.event(event);
  }));
  if (streamed) {
    show.end(answer);
  } else {
    print_json(answer, *options.sampling, arguments);
  }
  turns->push_back({"assistant", answer.text, {}});
}

// The path of `/image PATH`, nothing for a line that is no command.
std::string image_command(const std::string& line) {
  size_t end = 1;
  while (end < line.size() && line[end] >= 'a' && line[end] <= 'z') ++end;
  // What only begins with a slash, such as a path, is a question.
  const bool is_command = line[0] == '/' && end > 1 && (end == line.size() || line[end] == ' ' || line[end] == '\t');
  if (!is_command) return "";
  const std::string path = stripped(line.substr(end));
  if (line.substr(1, end - 1) == "image" && !path.empty()) return path;
  fail_usage("Unknown conversation command.\n  expected: " + std::string(kCommands) +
             "\n  found:    " + line.substr(0, 80));
}

void chat(api::Engine& engine, const api::RequestOptions& options, const RunArguments& arguments,
          std::vector<api::Image> images) {
  const bool interactive = isatty(STDIN_FILENO) != 0;
  std::vector<api::Turn> turns;
  if (interactive) std::cerr << kCommands << std::endl;
  for (std::string line; (interactive && std::cerr << "> "), std::getline(std::cin, line);) {
    line = stripped(line);
    if (line == "/exit") return;
    if (line.empty()) continue;
    const size_t before = turns.size();
    try {
      if (const std::string path = image_command(line); !path.empty()) {
        images.push_back(image_named(path));
        continue;
      }
      turns.push_back({"user", line, images});
      ask(engine, &turns, options, arguments);
      images.clear();
    } catch (const Failure& failure) {
      if (!interactive) throw;
      turns.resize(before);  // The turn is not part of the conversation, and its images are shown with the next one.
      std::cerr << "error: " << failure.error.message << std::endl;
    }
  }
}

}  // namespace

void run(const RunArguments& arguments) {
  require_stdin_once(arguments);
  if (arguments.sampling.logprobs && arguments.format != "json")
    fail_usage("Log probabilities are printed in JSON only: add --format json.");
  const std::string question = arguments.chat ? "" : question_of(arguments);
  api::Engine engine = open(arguments.engine);
  if ((arguments.chat || !arguments.images.empty()) && !engine.note().empty()) std::cerr << engine.note() << std::endl;
  std::vector<const char*> stops;
  api::RequestOptions options;
  options.sampling = choose(arguments.sampling, engine, &stops);
  options.think = !arguments.no_think;
  options.grounding = arguments.grounding;
  std::vector<api::Image> images;
  for (const std::string& name : arguments.images) images.push_back(image_named(name));
  if (arguments.chat) {
    chat(engine, options, arguments, std::move(images));
    return;
  }
  std::vector<api::Turn> turns = {{"user", question, std::move(images)}};
  ask(engine, &turns, options, arguments);
}

}  // namespace r1v::cli
