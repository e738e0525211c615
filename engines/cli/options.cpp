#include "cli/options.h"

#include <cstdio>
#include <sstream>

namespace r1v::cli {
namespace {

constexpr size_t kMaxImageBytes = 100000000;

// In words, as the Python program prints it: only what has an effect.
std::string in_words(const r1v_sampling& sampling) {
  std::ostringstream words;
  const auto add = [&](const char* name, double value, double off) {
    if (value != off) words << name << ' ' << value << ", ";
  };
  if (sampling.temperature == 0) {
    words << "greedy, ";
  } else {
    words << "temperature " << sampling.temperature << ", ";
    add("top_p", sampling.top_p, 1);
    add("top_k", static_cast<double>(sampling.top_k), 0);
    add("min_p", sampling.min_p, 0);
    words << "seed " << sampling.seed << ", ";
  }
  add("repetition_penalty", sampling.repetition_penalty, 1);
  add("presence_penalty", sampling.presence_penalty, 0);
  add("frequency_penalty", sampling.frequency_penalty, 0);
  words << "max_new_tokens " << sampling.max_new_tokens;
  return words.str();
}

template <typename To, typename From>
void replace(To& field, const std::optional<From>& given) {
  if (given) field = *given;
}

}  // namespace

void fail_usage(const std::string& what) { throw Failure{{R1V_USAGE_ERROR, what}}; }

void EngineArguments::add_to(CLI::App& command) {
  command.add_option("BUNDLE", bundle, "Folder that r1v-export build wrote.")->required();
  command.add_option("--target", target, "Engine of the bundle. [default: onnxruntime]");
  command.add_option("--device", device, "cpu, cuda or tensorrt.")->capture_default_str();
  command.add_option("--gpu", gpu, "Which one of several.")->capture_default_str();
  command.add_option("--threads", threads, "CPU threads. [default: the cores that this process may use]");
  command.add_option("--onnxruntime", library,
                     "ONNX Runtime's library or its folder. [default: R1V_ONNXRUNTIME, else the loader's]");
}

api::Engine EngineArguments::open() const {
  r1v_engine_options options;
  r1v_engine_options_init(&options, sizeof options);
  options.target = target.empty() ? nullptr : target.c_str();
  options.device = device.c_str();
  options.onnxruntime_library = library.empty() ? nullptr : library.c_str();
  options.gpu = gpu;
  options.threads = threads;
  options.verify = verify;
  return value_of(api::Engine::open(bundle, &options));
}

void SamplingArguments::add_to(CLI::App& command) {
  command.add_flag("--greedy", greedy, "Take the likeliest token, whatever the checkpoint recommends.");
  command.add_option("--max-new-tokens", max_new_tokens, "Longest answer. [default: the checkpoint's, or 512]");
  command.add_option("--temperature", temperature, "0 is greedy. [default: the checkpoint's, or 0]");
  command.add_option("--top-p", top_p, "Draw from this much probability.");
  command.add_option("--top-k", top_k, "Draw from this many tokens; 0 is off.");
  command.add_option("--min-p", min_p, "Draw from tokens with this share of the likeliest one's probability.");
  command.add_option("--repetition-penalty", repetition_penalty, "Above 1 repeats less.");
  command.add_option("--presence-penalty", presence_penalty, "Taken off tokens of the answer.");
  command.add_option("--frequency-penalty", frequency_penalty, "The same, for each time.");
  command.add_option("--seed", seed, "Random seed for sampling.")->capture_default_str();
  command.add_option("--stop", stop, "End the answer before this text; repeat for several.")->allow_extra_args(false);
  command.add_flag("--stop-in-reasoning", stop_in_reasoning, "Search the reasoning for --stop too.");
}

r1v_sampling SamplingArguments::choose(const api::Engine& engine, std::vector<const char*>* stops) const {
  if (greedy && temperature.value_or(0) != 0) fail_usage("Greedy sampling has no temperature: pass one of the two.");
  r1v_sampling sampling;
  const auto init = greedy ? r1v_sampling_init_greedy : r1v_sampling_init;
  if (const r1v_status status = init(engine.handle(), &sampling, sizeof sampling))
    throw Failure{api::last_error(status)};
  replace(sampling.max_new_tokens, max_new_tokens);
  replace(sampling.temperature, temperature);
  replace(sampling.top_p, top_p);
  replace(sampling.top_k, top_k);
  replace(sampling.min_p, min_p);
  replace(sampling.repetition_penalty, repetition_penalty);
  replace(sampling.presence_penalty, presence_penalty);
  replace(sampling.frequency_penalty, frequency_penalty);
  sampling.seed = seed;
  for (const std::string& each : stop) stops->push_back(each.c_str());
  sampling.stop = stops->data();
  sampling.stop_count = stops->size();
  sampling.stop_in_reasoning = stop_in_reasoning;
  std::fprintf(stderr, "sampling: %s\n", in_words(sampling).c_str());
  return sampling;
}

api::Image image_named(const std::string& name) {
  api::Image image;
  if (name == "-") {
    const std::string content = read_stdin(kMaxImageBytes, "The image");
    image.data.assign(content.begin(), content.end());
  } else if (name.rfind("data:", 0) == 0 || name.find("://") != std::string::npos) {
    fail_usage("This program reads images from files and standard input only: " + name.substr(0, 80));
  } else {
    image.path = name;
  }
  return image;
}

std::string read_stdin(size_t limit, const std::string& what) {
  std::string content;
  char buffer[1 << 16];
  while (const size_t count = std::fread(buffer, 1, sizeof buffer, stdin)) {
    content.append(buffer, count);
    if (content.size() > limit) {
      throw Failure{{R1V_INPUT_ERROR, what + " is too large.\n  where:    standard input\n  expected: at most " +
                                          std::to_string(limit) + " bytes"}};
    }
  }
  return content;
}

}  // namespace r1v::cli
