#include "backends/tensorrt_llm/executor.h"

#include <algorithm>
#include <random>

#include "backends/tensorrt_llm/table_prompt.h"
#include "base/error.h"
#include "bundle/numbers.h"

namespace r1v::trtllm {
namespace {

constexpr int64_t kMostTopK = 1024;  // the library clips larger ones without saying so

[[noreturn]] void refuse_sampling(const std::string& name, const std::string& expected, const std::string& found) {
  throw Error(Code::kUsage, "TensorRT-LLM's executor does not support this sampling setting as it is meant here.",
              {"sampling." + name, expected, found, "omit it, or use another engine of the bundle"});
}

// Settings that the library has no equal of: its penalties count the prompt's tokens too.
void require_supported(const Sampling& sampling) {
  const auto require_off = [](const char* name, double found) {
    if (found != 0) refuse_sampling(name, "0", std::to_string(found));
  };
  require_off("presence_penalty", sampling.presence_penalty);
  require_off("frequency_penalty", sampling.frequency_penalty);
  require_off("min_p", sampling.min_p);
  if (!sampling.logit_bias.empty()) refuse_sampling("logit_bias", "none", "");
  if (sampling.logprobs) refuse_sampling("logprobs", "none", std::to_string(*sampling.logprobs));
  if (sampling.max_reasoning_tokens)
    refuse_sampling("max_reasoning_tokens", "none", std::to_string(*sampling.max_reasoning_tokens));
  if (!sampling.greedy() && sampling.top_k > kMostTopK) {
    refuse_sampling("top_k", "at most " + std::to_string(kMostTopK) + ", or 0 for all", std::to_string(sampling.top_k));
  }
}

uint64_t fresh_seed() {
  std::random_device entropy;
  return uint64_t{entropy()} << 32 | entropy();
}

r1v_trtllm_dtype dtype_of(ElementType type) {
  return type == ElementType::kFloat16    ? R1V_TRTLLM_FLOAT16
         : type == ElementType::kBFloat16 ? R1V_TRTLLM_BFLOAT16
                                          : R1V_TRTLLM_FLOAT32;
}

// The first line of what the library says; the others are its stack.
std::string first_line(const char* text) {
  const std::string whole = text;
  return whole.substr(0, whole.find('\n'));
}

void* open(const Library& library, const EngineConfig& config, const std::filesystem::path& engine,
           bool reuse_prefixes) {
  const std::string folder = engine.string(), worker = library.worker().string();
  const r1v_trtllm_options options{folder.c_str(), reuse_prefixes && config.reuses_blocks,
                                   config.ranks > 1 ? worker.c_str() : nullptr};
  r1v_trtllm_message message{};
  if (void* executor = library.module().open(&options, &message)) return executor;
  throw Error(Code::kCapability, "TensorRT-LLM cannot open the engine here.",
              {folder, "", first_line(message.text),
               "an engine runs on the kind of GPU and the version that it was built for: r1v-export engine"});
}

std::optional<FinishReason> finish_reason(r1v_trtllm_reason reason) {
  switch (reason) {
    case R1V_TRTLLM_END_ID:
    case R1V_TRTLLM_STOP_WORDS: return FinishReason::kStop;
    case R1V_TRTLLM_LENGTH: return FinishReason::kLength;
    case R1V_TRTLLM_CANCELLED: return FinishReason::kCancelled;
    case R1V_TRTLLM_NOT_FINISHED:
    case R1V_TRTLLM_OTHER: break;
  }
  return std::nullopt;
}

Error failure(const std::string& what, const std::string& found) {
  return Error(Code::kGraph, what, {"executor", "", first_line(found.c_str()), ""});
}

}  // namespace

ExecutorGenerator::ExecutorGenerator(const Library& library, const EngineConfig& config,
                                     const std::filesystem::path& engine, int64_t image_token_id, bool reuse_prefixes)
    : module_(library.module()),
      version_(library.version()),
      config_(config),
      image_token_id_(image_token_id),
      executor_(open(library, config, engine, reuse_prefixes)) {}

void ExecutorGenerator::require_fits(int64_t tokens, int64_t rows, int64_t max_new_tokens) const {
  struct Limit {
    const char* what;
    int64_t found, most;
  };
  for (const Limit& limit : {Limit{"prompt tokens", tokens, std::min(config_.max_input_len, config_.max_num_tokens)},
                             Limit{"tokens of prompt and answer", tokens + max_new_tokens, config_.max_seq_len},
                             Limit{"image tokens", rows, config_.max_table_rows / config_.max_batch_size}}) {
    if (limit.found <= limit.most) continue;
    throw Error(Code::kInput, std::string("The request has more ") + limit.what + " than the engine was built for.",
                {"request", "at most " + std::to_string(limit.most), std::to_string(limit.found),
                 "ask for less, or build an engine with larger sizes (tensorrt-llm in the build file)"});
  }
}

uint64_t ExecutorGenerator::start(const std::vector<int64_t>& token_ids, const std::vector<EmbeddedImage>& images,
                                  const Sampling& sampling, const std::vector<int64_t>& stop_ids) {
  const TablePrompt prompt = table_prompt(token_ids, images, image_token_id_, config_.vocab, config_.hidden);
  const int64_t rows = static_cast<int64_t>(prompt.table.size()) / config_.hidden;
  require_fits(static_cast<int64_t>(token_ids.size()), rows, sampling.max_new_tokens);
  require_supported(sampling);
  std::vector<char> table(prompt.table.size() * element_bytes(config_.dtype));
  convert(prompt.table.data(), prompt.table.size(), config_.dtype, table.data(), "language model", "image embeddings");
  std::vector<int32_t> stops(stop_ids.begin(), stop_ids.end());
  std::sort(stops.begin(), stops.end());

  r1v_trtllm_request request{};
  request.token_ids = prompt.token_ids.data();
  request.token_count = prompt.token_ids.size();
  request.max_tokens = static_cast<int32_t>(sampling.max_new_tokens);  // within max_seq_len
  request.stop_ids = stops.data();
  request.stop_count = stops.size();
  request.greedy = sampling.greedy();
  request.top_k = static_cast<int32_t>(std::min(sampling.top_k, kMostTopK));
  request.top_p = static_cast<float>(sampling.top_p);
  request.temperature = static_cast<float>(sampling.temperature);
  request.seed = sampling.seed ? *sampling.seed : fresh_seed();
  request.repetition_penalty = static_cast<float>(sampling.repetition_penalty);
  request.table = table.empty() ? nullptr : table.data();
  request.rows = rows;
  request.hidden = config_.hidden;
  request.dtype = dtype_of(config_.dtype);
  request.extra_ids = prompt.extra_ids.data();
  uint64_t number = 0;
  r1v_trtllm_message message{};
  if (module_.enqueue(executor_, &request, &number, &message) == 0)
    throw failure("TensorRT-LLM refuses a request.", message.text);
  try {
    end_ids_[number] = stops.empty() ? std::nullopt : std::optional<int64_t>(stops.front());
  } catch (...) {  // Memory that there is not.
    module_.cancel(executor_, number);
    throw;
  }
  return number;
}

std::vector<Generated> ExecutorGenerator::wait(std::chrono::milliseconds most) {
  const r1v_trtllm_response* responses = nullptr;
  size_t count = 0;
  r1v_trtllm_message message{};
  if (module_.wait(executor_, most.count(), &responses, &count, &message) == 0)
    throw failure("TensorRT-LLM raised an error.", message.text);
  std::vector<Generated> generated;
  for (size_t i = 0; i < count; ++i) {
    if (end_ids_.count(responses[i].request) > 0) generated.push_back(read(responses[i]));
  }
  return generated;
}

Generated ExecutorGenerator::read(const r1v_trtllm_response& response) {
  Generated generated{response.request, {response.token_ids, response.token_ids + response.token_count}};
  if (response.error != nullptr) {
    generated.error = std::make_exception_ptr(failure("TensorRT-LLM failed on a request.", response.error));
  } else if (response.is_final != 0) {
    generated.reason = finish_reason(response.reason);
    const std::optional<int64_t> end_id = end_ids_.at(response.request);
    const bool unseen = generated.token_ids.empty() || generated.token_ids.back() != end_id;
    if (response.reason == R1V_TRTLLM_END_ID && end_id && unseen) generated.token_ids.push_back(*end_id);
    if (!generated.reason) {
      generated.error = std::make_exception_ptr(
          failure("TensorRT-LLM aborted the request.", "finish reason " + std::to_string(response.reason)));
    }
  }
  if (generated.is_last()) end_ids_.erase(response.request);
  return generated;
}

void ExecutorGenerator::cancel(uint64_t request) noexcept {
  if (end_ids_.erase(request) > 0) module_.cancel(executor_, request);
}

}  // namespace r1v::trtllm
