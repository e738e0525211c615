#include "cli/options.h"

#include <cstdio>
#include <sstream>

#include "base/error.h"
#include "image/data_url.h"

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
  add("max_reasoning_tokens", static_cast<double>(sampling.max_reasoning_tokens), -1);
  words << "max_new_tokens " << sampling.max_new_tokens;
  return words.str();
}

template <typename To, typename From>
void replace(To& field, const std::optional<From>& given) {
  if (given) field = *given;
}

const char* or_null(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

}  // namespace

void fail_usage(const std::string& what) { throw Failure{{R1V_USAGE_ERROR, what}}; }

api::Engine open(const EngineArguments& arguments, const std::function<void(r1v_engine_options*)>& change) {
  r1v_engine_options options;
  r1v_engine_options_init(&options, sizeof options);
  options.target = or_null(arguments.target);
  options.vision_target = or_null(arguments.vision_target);
  options.engine = or_null(arguments.engine);
  options.device = arguments.device.c_str();
  options.onnxruntime_library = or_null(arguments.onnxruntime);
  options.tensorrt_library = or_null(arguments.tensorrt);
  options.tensorrt_llm_library = or_null(arguments.tensorrt_llm);
  options.gpu = arguments.gpu;
  options.threads = arguments.threads;
  options.verify = arguments.verify;
  options.warn = [](void*, const char* message) { std::fprintf(stderr, "warning: %s\n", message); };
  if (change) change(&options);
  return value_of(api::Engine::open(arguments.bundle, &options));
}

r1v_sampling choose(const SamplingArguments& arguments, const api::Engine& engine, std::vector<const char*>* stops) {
  if (arguments.greedy && arguments.temperature.value_or(0) != 0)
    fail_usage("Greedy sampling has no temperature: pass one of the two.");
  r1v_sampling sampling;
  const auto init = arguments.greedy ? r1v_sampling_init_greedy : r1v_sampling_init;
  if (const r1v_status status = init(engine.handle(), &sampling, sizeof sampling))
    throw Failure{api::last_error(status)};
  replace(sampling.max_new_tokens, arguments.max_new_tokens);
  replace(sampling.temperature, arguments.temperature);
  replace(sampling.top_p, arguments.top_p);
  replace(sampling.top_k, arguments.top_k);
  replace(sampling.min_p, arguments.min_p);
  replace(sampling.repetition_penalty, arguments.repetition_penalty);
  replace(sampling.presence_penalty, arguments.presence_penalty);
  replace(sampling.frequency_penalty, arguments.frequency_penalty);
  replace(sampling.max_reasoning_tokens, arguments.max_reasoning_tokens);
  replace(sampling.logprobs, arguments.logprobs);
  sampling.seed = arguments.seed;
  for (const std::string& each : arguments.stop) stops->push_back(each.c_str());
  sampling.stop = stops->data();
  sampling.stop_count = stops->size();
  sampling.stop_in_reasoning = arguments.stop_in_reasoning;
  std::fprintf(stderr, "sampling: %s\n", in_words(sampling).c_str());
  return sampling;
}

std::vector<uint8_t> data_of(const std::string& url) {
  try {
    const std::string content = read_data_url(url);
    return {content.begin(), content.end()};
  } catch (const Error& error) {
    throw Failure{{R1V_INPUT_ERROR, error.what()}};
  }
}

api::Image image_named(const std::string& name) {
  api::Image image;
  if (name == "-") {
    const std::string content = read_stdin(kMaxImageBytes, "The image");
    image.data.assign(content.begin(), content.end());
  } else if (is_data_url(name)) {
    image.data = data_of(name);
  } else if (name.find("://") != std::string::npos) {
    fail_usage("This program does not fetch images: " + name.substr(0, 80));
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
