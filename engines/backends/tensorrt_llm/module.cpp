// libr1v_tensorrt_llm.so: the only file that is compiled with TensorRT-LLM's headers (cpp/include of its sources).
//
// Constructors are given their first parameters only, which are the same in 1.0, 1.1 and 1.2; all else is set by name.
#include "backends/tensorrt_llm/module.h"

#include <tensorrt_llm/executor/executor.h>
#include <tensorrt_llm/executor/version.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <list>
#include <optional>
#include <string>
#include <vector>

namespace {

namespace trtllm = tensorrt_llm::executor;

constexpr bool is_supported(const char* version) {
  return version[0] == '1' && version[1] == '.' && version[2] >= '0' && version[2] <= '2' && version[3] == '.';
}
static_assert(is_supported(trtllm::kTensorRtLlmVersion), "TensorRT-LLM 1.0 to 1.2: later ones have no engines");

void keep(r1v_trtllm_message* message, const char* text) {
  std::strncpy(message->text, text, sizeof message->text - 1);
  message->text[sizeof message->text - 1] = '\0';
}

// Whether a call has succeeded; else the message says why not.
template <typename Call>
bool guarded(r1v_trtllm_message* message, const Call& call) noexcept {
  try {
    call();
    return true;
  } catch (const std::exception& error) {
    keep(message, error.what());
  } catch (...) {
    keep(message, "an error without a name");
  }
  return false;
}

trtllm::DataType data_type(r1v_trtllm_dtype dtype) {
  switch (dtype) {
    case R1V_TRTLLM_FLOAT16: return trtllm::DataType::kFP16;
    case R1V_TRTLLM_BFLOAT16: return trtllm::DataType::kBF16;
    case R1V_TRTLLM_FLOAT32: break;
  }
  return trtllm::DataType::kFP32;
}

r1v_trtllm_reason reason_of(const trtllm::Result& result) {
  switch (result.finishReasons.empty() ? trtllm::FinishReason::kNOT_FINISHED : result.finishReasons.front()) {
    case trtllm::FinishReason::kEND_ID: return R1V_TRTLLM_END_ID;
    case trtllm::FinishReason::kSTOP_WORDS: return R1V_TRTLLM_STOP_WORDS;
    case trtllm::FinishReason::kLENGTH: return R1V_TRTLLM_LENGTH;
    case trtllm::FinishReason::kCANCELLED: return R1V_TRTLLM_CANCELLED;
    default: return R1V_TRTLLM_OTHER;
  }
}

// Neither top_k nor top_p means greedy there, for both are 0 by default, so drawing always names both.
trtllm::SamplingConfig sampling_of(const r1v_trtllm_request& request) {
  trtllm::SamplingConfig sampling(1);
  if (request.repetition_penalty != 1) sampling.setRepetitionPenalty(request.repetition_penalty);
  if (request.greedy != 0) {
    sampling.setTopK(1);
    return sampling;
  }
  sampling.setTopK(request.top_k);
  sampling.setTopP(request.top_p);
  sampling.setTemperature(request.temperature);
  sampling.setSeed(request.seed);
  return sampling;
}

// Holds a copy of the rows. Of the library's ways to make a tensor it is the one that takes neither a GPU nor care for
// how long the caller's memory lives.
trtllm::PromptTuningConfig table_of(const r1v_trtllm_request& request) {
  trtllm::Tensor table = trtllm::Tensor::cpu(data_type(request.dtype), {request.rows, request.hidden});
  std::memcpy(table.getData(), request.table, table.getSizeInBytes());
  return trtllm::PromptTuningConfig(
      table, trtllm::VecTokenExtraIds(request.extra_ids, request.extra_ids + request.token_count));
}

// The executor knows one end token; the others are stop words of one token.
trtllm::Request request_of(const r1v_trtllm_request& given) {
  trtllm::OutputConfig output;
  output.excludeInputFromOutput = true;
  const std::optional<trtllm::SizeType32> end_id =
      given.stop_count > 0 ? std::optional<trtllm::SizeType32>(given.stop_ids[0]) : std::nullopt;
  trtllm::Request request(trtllm::VecTokens(given.token_ids, given.token_ids + given.token_count), given.max_tokens,
                          true, sampling_of(given), output, end_id, end_id);
  std::list<trtllm::VecTokens> stop_words;
  for (size_t i = 1; i < given.stop_count; ++i) stop_words.push_back({given.stop_ids[i]});
  if (!stop_words.empty()) request.setStopWords(stop_words);
  if (given.table != nullptr) request.setPromptTuningConfig(table_of(given));
  return request;
}

// One worker process for each rank, so that this one stays the only one that the user sees.
trtllm::ParallelConfig one_process_each(const char* worker) {
  return trtllm::ParallelConfig(trtllm::CommunicationType::kMPI, trtllm::CommunicationMode::kORCHESTRATOR, std::nullopt,
                                std::nullopt, trtllm::OrchestratorConfig(true, worker));
}

trtllm::ExecutorConfig config_of(const r1v_trtllm_options& options) {
  trtllm::ExecutorConfig config(1);
  config.setKvCacheConfig(trtllm::KvCacheConfig(options.reuse_blocks != 0));
  if (options.worker != nullptr) config.setParallelConfig(one_process_each(options.worker));
  return config;
}

struct Opened {
  explicit Opened(const r1v_trtllm_options& options)
      : executor(options.engine, trtllm::ModelType::kDECODER_ONLY, config_of(options)) {}

  void wait(int64_t milliseconds);

  trtllm::Executor executor;
  std::vector<trtllm::Response> responses;   // of the latest call of `wait`,
  std::vector<r1v_trtllm_response> written;  // and as it gives them
};

void Opened::wait(int64_t milliseconds) {
  written.clear();
  responses = executor.awaitResponses(std::chrono::milliseconds(milliseconds));
  for (const trtllm::Response& response : responses) {
    r1v_trtllm_response out{};
    out.request = response.getRequestId();
    if (response.hasError()) {
      out.error = response.getErrorMsg().c_str();
    } else {
      const trtllm::Result& result = response.getResult();
      if (!result.outputTokenIds.empty()) {
        out.token_ids = result.outputTokenIds.front().data();
        out.token_count = result.outputTokenIds.front().size();
      }
      out.is_final = result.isFinal;
      if (result.isFinal) out.reason = reason_of(result);
    }
    written.push_back(out);
  }
}

void* open(const r1v_trtllm_options* options, r1v_trtllm_message* message) {
  Opened* opened = nullptr;
  guarded(message, [&] { opened = new Opened(*options); });
  return opened;
}

void close(void* executor) {
  r1v_trtllm_message message;
  guarded(&message, [&] { delete static_cast<Opened*>(executor); });
}

int32_t enqueue(void* executor, const r1v_trtllm_request* request, uint64_t* number, r1v_trtllm_message* message) {
  return guarded(message,
                 [&] { *number = static_cast<Opened*>(executor)->executor.enqueueRequest(request_of(*request)); });
}

int32_t wait(void* executor, int64_t milliseconds, const r1v_trtllm_response** responses, size_t* count,
             r1v_trtllm_message* message) {
  auto* opened = static_cast<Opened*>(executor);
  const bool done = guarded(message, [&] { opened->wait(milliseconds); });
  *responses = opened->written.data();
  *count = done ? opened->written.size() : 0;
  return done;
}

void cancel(void* executor, uint64_t number) {
  r1v_trtllm_message message;
  guarded(&message, [&] { static_cast<Opened*>(executor)->executor.cancelRequest(number); });
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const r1v_trtllm_module* r1v_tensorrt_llm_module(void) {
  static const r1v_trtllm_module module = {
      R1V_TRTLLM_MODULE_VERSION, trtllm::kTensorRtLlmVersion, open, close, enqueue, wait, cancel};
  return &module;
}
