#include "cli/show.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "cli/printable.h"

namespace r1v::cli {
namespace {

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

bool no_color() {
  const char* set = std::getenv("NO_COLOR");
  return set != nullptr && *set != '\0';
}

// Why there is nothing to see; special tokens have no text.
std::string no_text(const api::Answer& answer) {
  const auto count = static_cast<int64_t>(answer.token_ids.size()) - answer.reasoning_tokens;
  const std::string tokens = count == 1 ? "its only token is a special one"
                                        : "its " + std::to_string(count) + " tokens are special ones";
  return "the answer has no text: " + tokens + " or white space, or --stop came first; --format json shows the ids";
}

std::string end_remark(const api::Answer& answer) {
  const bool silent = answer.reasoning_complete && answer.text.empty();
  if (answer.finish_reason == R1V_FINISH_LENGTH) {
    const std::string remark =
        "cut off after " + std::to_string(answer.token_ids.size()) + " tokens by --max-new-tokens";
    return silent ? remark + "; " + no_text(answer) : remark;
  }
  if (answer.finish_reason == R1V_FINISH_CONTEXT) {
    const size_t tokens = static_cast<size_t>(answer.prompt_tokens) + answer.token_ids.size();
    return "cut off: prompt and answer fill the model's context of " + std::to_string(tokens) + " tokens";
  }
  if (!answer.reasoning_complete) return "the model stopped inside its reasoning: there is no answer";
  return silent ? no_text(answer) : "";
}

}  // namespace

Show::Show(bool answer_only) : answer_only_(answer_only), dimmed_(isatty(STDOUT_FILENO) != 0 && !no_color()) {}

void Show::event(const api::Event& event) {
  if (!event.reasoning.empty() && !answer_only_) {
    if (!thinking_ && !dimmed_) print("<think>\n");
    thinking_ = true;
    const std::string reasoning = printable(event.reasoning);
    print(dimmed_ ? "\x1b[2m" + reasoning + "\x1b[0m" : reasoning);
  }
  if (!event.text.empty()) {
    if (thinking_) print(dimmed_ ? "\n\n" : "\n</think>\n");
    thinking_ = false;
    print(printable(event.text));
  }
}

void Show::end(const api::Answer& answer) {
  print(thinking_ && !dimmed_ && answer.reasoning_complete ? "\n</think>\n" : "\n");
  thinking_ = false;
  if (const std::string remark = end_remark(answer); !remark.empty()) std::fprintf(stderr, "(%s)\n", remark.c_str());
}

}  // namespace r1v::cli
