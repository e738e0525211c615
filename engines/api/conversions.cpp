#include "api/conversions.h"

#include <algorithm>
#include <chrono>

#include "api/structs.h"
#include "base/checked.h"

namespace r1v::capi {
namespace {

constexpr int64_t kNone = -1;

std::string text_of(const char* text, const char* field) {
  if (text != nullptr) return text;
  throw Error(Code::kUsage, "A text is missing.", {field, "a text", "NULL", ""});
}

Role role_of(const std::string& role) {
  if (role == "system") return Role::kSystem;
  if (role == "user") return Role::kUser;
  if (role == "assistant") return Role::kAssistant;
  throw Error(Code::kUsage, "There is no such role.", {"turn.role", "system, user or assistant", role, ""});
}

Pixels raw_pixels(const r1v_image& image, const ImageLimits& limits) {
  require_size(image.width, image.height, limits, "image");
  Pixels pixels(image.width, image.height);
  const size_t bytes = checked_product({pixels.count(), 3}, "image");
  if (image.size != bytes) {
    throw Error(
        Code::kUsage, "The pixels of an image are not as many as its size needs.",
        {"image.size", std::to_string(bytes) + " bytes, 3 for each pixel", std::to_string(image.size) + " bytes", ""});
  }
  uint8_t* to = pixels.row(0);
  for (size_t i = 0; i < pixels.count(); ++i, to += Pixels::kBytes) {
    std::memcpy(to, image.data + 3 * i, 3);
    to[3] = 255;
  }
  return pixels;
}

Pixels pixels_of(const r1v_image& given, const Runner& runner) {
  r1v_image defaults{};
  const r1v_image image = read_struct(&given, defaults, "image");
  if (image.path != nullptr)
    return load_image(std::filesystem::path(image.path), runner.image_policy(), runner.image_limits());
  if (image.data == nullptr) throw Error(Code::kUsage, "An image is missing.", {"image", "a path or data", "NULL", ""});
  if (image.width != 0 || image.height != 0) return raw_pixels(image, runner.image_limits());
  return load_image(EncodedImage{image.data, image.size, "image data"}, runner.image_policy(), runner.image_limits());
}

}  // namespace

r1v_engine_options default_engine_options() {
  const BatchingOptions batching;
  r1v_engine_options options{};
  options.max_rows = batching.max_rows;
  options.max_queued = batching.max_queued;
  options.cache_bytes = batching.cache_bytes;
  options.image_cache_bytes = batching.image_cache_bytes;
  options.prefill_chunk = batching.prefill_chunk;
  options.keep_prefixes = batching.keep_prefixes;
  return options;
}

r1v_request_options default_request_options() {
  r1v_request_options options{};
  options.think = 1;
  return options;
}

RunnerOptions runner_options(const r1v_engine_options* given) {
  RunnerOptions options;
  if (given == nullptr) return options;
  const r1v_engine_options whole = read_struct(given, default_engine_options(), "engine_options");
  if (whole.target != nullptr) options.engine.target = whole.target;
  if (whole.device != nullptr) options.engine.device = whole.device;
  if (whole.onnxruntime_library != nullptr) options.engine.onnxruntime_library = whole.onnxruntime_library;
  if (whole.vision_target != nullptr) options.engine.vision_target = whole.vision_target;
  if (whole.tensorrt_library != nullptr) options.engine.tensorrt_library = whole.tensorrt_library;
  if (whole.engine != nullptr) options.engine.engine = whole.engine;
  if (whole.tensorrt_llm_library != nullptr) options.engine.tensorrt_llm_library = whole.tensorrt_llm_library;
  if (whole.warn != nullptr) {
    options.engine.warn = [warn = whole.warn, context = whole.warn_context](const std::string& message) {
      warn(context, message.c_str());
    };
  }
  options.engine.gpu = whole.gpu;
  options.engine.threads = whole.threads;
  options.verify = whole.verify != 0;
  options.batching = {whole.max_rows,          whole.max_queued,    whole.cache_bytes,
                      whole.image_cache_bytes, whole.prefill_chunk, whole.keep_prefixes != 0};
  if (whole.threads < 0 || whole.gpu < 0) {
    throw Error(Code::kUsage, "An option of the engine is out of its range.", {"threads, gpu", "0 or more", "", ""});
  }
  return options;
}

r1v_sampling c_sampling(const Sampling& sampling) {
  r1v_sampling whole{};
  whole.max_new_tokens = sampling.max_new_tokens;
  whole.temperature = sampling.temperature;
  whole.top_p = sampling.top_p;
  whole.top_k = sampling.top_k;
  whole.min_p = sampling.min_p;
  whole.repetition_penalty = sampling.repetition_penalty;
  whole.presence_penalty = sampling.presence_penalty;
  whole.frequency_penalty = sampling.frequency_penalty;
  whole.seed = sampling.seed.value_or(0);
  whole.random_seed = !sampling.seed.has_value();
  whole.max_reasoning_tokens = sampling.max_reasoning_tokens.value_or(kNone);
  whole.logprobs = sampling.logprobs.value_or(kNone);
  return whole;
}

Sampling cpp_sampling(const r1v_sampling& given) {
  const r1v_sampling whole = read_struct(&given, c_sampling(Sampling{}), "sampling");
  Sampling sampling;
  sampling.max_new_tokens = whole.max_new_tokens;
  sampling.temperature = whole.temperature;
  sampling.top_p = whole.top_p;
  sampling.top_k = whole.top_k;
  sampling.min_p = whole.min_p;
  sampling.repetition_penalty = whole.repetition_penalty;
  sampling.presence_penalty = whole.presence_penalty;
  sampling.frequency_penalty = whole.frequency_penalty;
  sampling.seed = whole.random_seed != 0 ? std::nullopt : std::optional<uint64_t>(whole.seed);
  if (whole.stop_count > 0 && whole.stop == nullptr) text_of(nullptr, "sampling.stop");
  for (size_t i = 0; i < whole.stop_count; ++i) sampling.stop.push_back(text_of(whole.stop[i], "sampling.stop"));
  sampling.stop_in_reasoning = whole.stop_in_reasoning != 0;
  sampling.ignore_eos = whole.ignore_eos != 0;
  if (whole.bias_count > 0 && (whole.bias_ids == nullptr || whole.biases == nullptr)) {
    throw Error(Code::kUsage, "A list is missing.", {"sampling.bias_ids, sampling.biases", "two lists", "NULL", ""});
  }
  for (size_t i = 0; i < whole.bias_count; ++i) sampling.logit_bias.emplace_back(whole.bias_ids[i], whole.biases[i]);
  if (whole.max_reasoning_tokens != kNone) sampling.max_reasoning_tokens = whole.max_reasoning_tokens;
  if (whole.logprobs != kNone) sampling.logprobs = whole.logprobs;
  return sampling;
}

LogprobArrays::LogprobArrays(const std::vector<TokenLogprobs>& tokens) {
  for (const TokenLogprobs& token : tokens) {
    chosen_.push_back(token.logprob);
    for (const auto& [id, logprob] : token.top) {
      top_ids_.push_back(id);
      top_.push_back(logprob);
    }
  }
}

JobOptions job_options(const r1v_request_options& options) {
  JobOptions job;
  if (options.client != nullptr) job.client = options.client;
  if (options.timeout_ms < 0) {
    throw Error(Code::kUsage, "A time is out of its range.",
                {"request_options.timeout_ms", "0 for never, or more", std::to_string(options.timeout_ms), ""});
  }
  if (options.timeout_ms > 0) {
    constexpr int64_t kYearMs = int64_t{365} * 24 * 3600 * 1000;
    job.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(std::min(options.timeout_ms, kYearMs));
  }
  return job;
}

Request request_of(const Runner& runner, const r1v_request_options& options) {
  Request request;
  request.think = options.think != 0;
  request.grounding = options.grounding != 0;
  request.raw = options.raw != 0;
  if (options.turn_count > 0 && options.turns == nullptr) text_of(nullptr, "turns");
  for (size_t i = 0; i < options.turn_count; ++i) {
    // Its own size, which may be another one than ours, is that of a turn in the caller's list.
    const auto* place = reinterpret_cast<const char*>(options.turns) + i * options.turns->struct_size;
    const r1v_turn turn = read_struct(reinterpret_cast<const r1v_turn*>(place), r1v_turn{}, "turn");
    request.turns.push_back({role_of(text_of(turn.role, "turn.role")), text_of(turn.text, "turn.text"),
                             checked_cast<int64_t>(turn.image_count, "turn.image_count")});
    if (turn.image_count > 0 && turn.images == nullptr) text_of(nullptr, "turn.images");
    for (size_t j = 0; j < turn.image_count; ++j) {
      const auto* image = reinterpret_cast<const char*>(turn.images) + j * turn.images->struct_size;
      request.images.push_back(pixels_of(*reinterpret_cast<const r1v_image*>(image), runner));
    }
  }
  return request;
}

}  // namespace r1v::capi
