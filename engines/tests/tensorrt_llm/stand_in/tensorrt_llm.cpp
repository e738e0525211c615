// Stands in for libtensorrt_llm: takes only what the library takes, and generates tokens on a thread of its own, one
// for each open request in each iteration.
//
// An engine whose rank0.engine is JSON has a script, {"answers": [[tokens], ...]}: the n-th request is answered with
// the n-th of them, and requests are written to requests.jsonl in its folder. Else the answer is the arithmetic of the
// fake engine (tests/runner/fake_engine.h): the likeliest token after what the prompt's ids are, or the first number of
// a row of its table.
#include <tensorrt_llm/executor/executor.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>

#include "base/half.h"
#include "base/json.h"
#include "tests/runner/fake_engine.h"
#include "tests/tensorrt_llm/stand_in/controls.h"

namespace tensorrt_llm::runtime {

class ITensor {
 public:
  executor::DataType type;
  std::vector<int64_t> shape;
  std::vector<char> data;
};

}  // namespace tensorrt_llm::runtime

namespace tensorrt_llm::executor {
namespace {

using r1v::Json;
using r1v::stand_in::controls, r1v::stand_in::SeenRequest;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

size_t bytes_of(DataType type) { return type == DataType::kFP32 ? 4 : 2; }

std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

float number_at(const Tensor& tensor, size_t index) {
  const auto* data = static_cast<const char*>(tensor.getData());
  if (tensor.getDataType() == DataType::kFP32) return reinterpret_cast<const float*>(data)[index];
  const uint16_t half = reinterpret_cast<const uint16_t*>(data)[index];
  return tensor.getDataType() == DataType::kFP16 ? r1v::half_to_float(half) : r1v::bfloat16_to_float(half);
}

}  // namespace

Tensor Tensor::cpu(DataType dataType, Shape shape) {
  auto made = std::make_shared<runtime::ITensor>();
  made->type = dataType;
  size_t count = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    made->shape.push_back(shape[i]);
    count *= static_cast<size_t>(shape[i]);
  }
  made->data.resize(count * bytes_of(dataType));
  return Tensor(std::move(made));
}
Tensor::Tensor(std::shared_ptr<runtime::ITensor> tensor) : mTensor(std::move(tensor)) {}
void* Tensor::getData() { return mTensor->data.data(); }
void const* Tensor::getData() const { return mTensor->data.data(); }
DataType Tensor::getDataType() const { return mTensor->type; }
Shape Tensor::getShape() const { return {mTensor->shape.data(), mTensor->shape.size()}; }
std::size_t Tensor::getSizeInBytes() const { return mTensor->data.size(); }

SamplingConfig::SamplingConfig(SizeType32 beamWidth, std::optional<SizeType32> const& topK,
                               std::optional<FloatType> const& topP)
    : mBeamWidth(beamWidth), mTopK(topK), mTopP(topP) {
  require(beamWidth == 1, "beamWidth");
}
SizeType32 SamplingConfig::getBeamWidth() const { return mBeamWidth; }
std::optional<SizeType32> SamplingConfig::getTopK() const { return mTopK; }
std::optional<FloatType> SamplingConfig::getTopP() const { return mTopP; }
std::optional<RandomSeedType> SamplingConfig::getSeed() const { return mSeed; }
std::optional<FloatType> SamplingConfig::getTemperature() const { return mTemperature; }
std::optional<FloatType> SamplingConfig::getRepetitionPenalty() const { return mRepetitionPenalty; }
void SamplingConfig::setTopK(std::optional<SizeType32> const& topK) {
  require(!topK || *topK >= 0, "topK");
  mTopK = topK;
}
void SamplingConfig::setTopP(std::optional<FloatType> const& topP) {
  require(!topP || (*topP > 0 && *topP <= 1), "topP");
  mTopP = topP;
}
void SamplingConfig::setSeed(std::optional<RandomSeedType> const& seed) { mSeed = seed; }
void SamplingConfig::setTemperature(std::optional<FloatType> const& temperature) {
  require(!temperature || *temperature >= 0, "temperature");
  mTemperature = temperature;
}
void SamplingConfig::setRepetitionPenalty(std::optional<FloatType> const& repetitionPenalty) {
  require(!repetitionPenalty || *repetitionPenalty > 0, "repetitionPenalty");
  mRepetitionPenalty = repetitionPenalty;
}

OutputConfig::OutputConfig(bool returnLogProbs, bool returnContextLogits, bool returnGenerationLogits,
                           bool excludeInputFromOutput)
    : returnLogProbs(returnLogProbs),
      returnContextLogits(returnContextLogits),
      returnGenerationLogits(returnGenerationLogits),
      excludeInputFromOutput(excludeInputFromOutput) {}

PromptTuningConfig::PromptTuningConfig(Tensor embeddingTable, std::optional<VecTokenExtraIds> inputTokenExtraIds)
    : mEmbeddingTable(std::move(embeddingTable)), mInputTokenExtraIds(std::move(inputTokenExtraIds)) {
  require(mEmbeddingTable.getShape().size() == 2, "embeddingTable");
}
Tensor PromptTuningConfig::getEmbeddingTable() const { return mEmbeddingTable; }
std::optional<VecTokenExtraIds> PromptTuningConfig::getInputTokenExtraIds() const { return mInputTokenExtraIds; }

class Request::Impl {
 public:
  VecTokens tokens;
  SizeType32 maxTokens;
  bool streaming;
  SamplingConfig sampling;
  OutputConfig output;
  std::optional<SizeType32> endId, padId;
  std::optional<std::list<VecTokens>> stopWords;
  std::optional<PromptTuningConfig> table;
};

Request::Request(VecTokens inputTokenIds, SizeType32 maxTokens, bool streaming, SamplingConfig const& samplingConfig,
                 OutputConfig const& outputConfig, std::optional<SizeType32> const& endId,
                 std::optional<SizeType32> const& padId)
    : mImpl(new Impl{
          std::move(inputTokenIds), maxTokens, streaming, samplingConfig, outputConfig, endId, padId, {}, {}}) {
  require(!mImpl->tokens.empty(), "inputTokenIds");
  require(maxTokens > 0, "maxTokens");
}
Request::Request(Request const& other) : mImpl(new Impl(*other.mImpl)) {}
Request::Request(Request&& other) noexcept = default;
Request& Request::operator=(Request const& other) {
  mImpl = std::make_unique<Impl>(*other.mImpl);
  return *this;
}
Request& Request::operator=(Request&& other) noexcept = default;
Request::~Request() = default;
VecTokens Request::getInputTokenIds() const { return mImpl->tokens; }
SizeType32 Request::getMaxTokens() const { return mImpl->maxTokens; }
bool Request::getStreaming() const { return mImpl->streaming; }
SamplingConfig Request::getSamplingConfig() const { return mImpl->sampling; }
OutputConfig Request::getOutputConfig() const { return mImpl->output; }
std::optional<SizeType32> Request::getEndId() const { return mImpl->endId; }
std::optional<SizeType32> Request::getPadId() const { return mImpl->padId; }
std::optional<std::list<VecTokens>> Request::getStopWords() const { return mImpl->stopWords; }
std::optional<PromptTuningConfig> Request::getPromptTuningConfig() const { return mImpl->table; }
void Request::setStopWords(std::list<VecTokens> const& stopWords) { mImpl->stopWords = stopWords; }
void Request::setPromptTuningConfig(PromptTuningConfig const& pTuningConfig) { mImpl->table = pTuningConfig; }

class Response::Impl {
 public:
  IdType request;
  std::optional<std::string> error;
  Result result;
};

Response::Response(IdType requestId, std::string errorMsg, std::optional<IdType>)
    : mImpl(new Impl{requestId, std::move(errorMsg), {}}) {}
Response::Response(IdType requestId, Result Result, std::optional<IdType>)
    : mImpl(new Impl{requestId, std::nullopt, std::move(Result)}) {}
Response::~Response() = default;
Response::Response(Response const& other) : mImpl(new Impl(*other.mImpl)) {}
Response::Response(Response&& other) noexcept = default;
Response& Response::operator=(Response const& other) {
  mImpl = std::make_unique<Impl>(*other.mImpl);
  return *this;
}
Response& Response::operator=(Response&& other) noexcept = default;
IdType Response::getRequestId() const { return mImpl->request; }
bool Response::hasError() const { return mImpl->error.has_value(); }
std::string const& Response::getErrorMsg() const { return mImpl->error.value(); }
Result const& Response::getResult() const {
  require(!hasError(), "a response with an error has no result");
  return mImpl->result;
}

KvCacheConfig::KvCacheConfig(bool enableBlockReuse) : mEnableBlockReuse(enableBlockReuse) {}
bool KvCacheConfig::getEnableBlockReuse() const { return mEnableBlockReuse; }

OrchestratorConfig::OrchestratorConfig(bool isOrchestrator, std::string workerExecutablePath,
                                       std::shared_ptr<mpi::MpiComm>, bool)
    : mIsOrchestrator(isOrchestrator), mWorkerExecutablePath(std::move(workerExecutablePath)) {}
bool OrchestratorConfig::getIsOrchestrator() const { return mIsOrchestrator; }
std::string OrchestratorConfig::getWorkerExecutablePath() const { return mWorkerExecutablePath; }

ParallelConfig::ParallelConfig(CommunicationType, CommunicationMode commMode, std::optional<std::vector<SizeType32>>,
                               std::optional<std::vector<SizeType32>>,
                               std::optional<OrchestratorConfig> const& orchestratorConfig)
    : mCommMode(commMode), mOrchestratorConfig(orchestratorConfig) {}
CommunicationMode ParallelConfig::getCommunicationMode() const { return mCommMode; }
std::optional<OrchestratorConfig> ParallelConfig::getOrchestratorConfig() const { return mOrchestratorConfig; }

ExecutorConfig::ExecutorConfig(SizeType32 maxBeamWidth) { require(maxBeamWidth == 1, "maxBeamWidth"); }
KvCacheConfig ExecutorConfig::getKvCacheConfig() const { return mKvCacheConfig; }
std::optional<ParallelConfig> ExecutorConfig::getParallelConfig() const { return mParallelConfig; }
void ExecutorConfig::setKvCacheConfig(KvCacheConfig const& kvCacheConfig) { mKvCacheConfig = kvCacheConfig; }
void ExecutorConfig::setParallelConfig(ParallelConfig const& parallelConfig) { mParallelConfig = parallelConfig; }

// The library's own loop.
class Executor::Impl {
 public:
  Impl(std::filesystem::path folder, const ExecutorConfig& config);
  ~Impl();

  IdType enqueue(const Request& request);
  std::vector<Response> await(const std::optional<std::chrono::milliseconds>& timeout);
  void cancel(IdType request);

 private:
  struct Open {
    SeenRequest seen;
    std::vector<float> held;        // of prompt and answer
    std::vector<int32_t> scripted;  // the answer, where there is a script
    int32_t generated = 0;
    bool cancelled = false;
  };

  SeenRequest seen(const Request& request) const;
  std::vector<float> held(const SeenRequest& seen);
  void write(const SeenRequest& seen) const;
  void loop();
  int32_t next_token(const Open& open) const;
  // The next response of a request; whether it is its last.
  bool respond(IdType id, Open* open);

  const std::filesystem::path folder_;
  const bool reuses_blocks_;
  Json config_, script_;
  int32_t vocab_, hidden_;
  size_t most_open_;

  std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  std::map<IdType, Open> open_;
  std::vector<Response> ready_;
  std::map<uint64_t, float> blocks_;  // by a hash of all ids and extra ids up to a token
  IdType last_ = 0;
  bool closing_ = false;
  std::thread thread_;
};

Executor::Impl::Impl(std::filesystem::path folder, const ExecutorConfig& config)
    : folder_(std::move(folder)), reuses_blocks_(config.getKvCacheConfig().getEnableBlockReuse()) {
  config_ = Json::parse(content_of(folder_ / "config.json"));
  const std::string engine = content_of(folder_ / "rank0.engine");
  if (engine.rfind('{', 0) == 0) script_ = Json::parse(engine);
  vocab_ = config_["pretrained_config"]["vocab_size"].get<int32_t>();
  hidden_ = config_["pretrained_config"]["hidden_size"].get<int32_t>();
  most_open_ = config_["build_config"]["max_batch_size"].get<size_t>();
  {
    auto& set = controls();
    const std::lock_guard<std::mutex> lock(set.mutex);
    require(set.plugins, "no plugins");
    if (!set.fail_open.empty()) throw std::runtime_error(set.fail_open);
    ++set.executors;
    set.reuses_blocks = reuses_blocks_;
    if (const auto parallel = config.getParallelConfig()) {
      require(parallel->getCommunicationMode() == CommunicationMode::kORCHESTRATOR, "mode");
      require(parallel->getOrchestratorConfig()->getIsOrchestrator(), "orchestrator");
      set.worker = parallel->getOrchestratorConfig()->getWorkerExecutablePath();
    }
  }
  thread_ = std::thread([this] { loop(); });
}

Executor::Impl::~Impl() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
  const std::lock_guard<std::mutex> lock(controls().mutex);
  --controls().executors;
}

SeenRequest Executor::Impl::seen(const Request& request) const {
  const SamplingConfig sampling = request.getSamplingConfig();
  SeenRequest seen;
  seen.token_ids = request.getInputTokenIds();
  seen.max_tokens = request.getMaxTokens();
  seen.end_id = request.getEndId();
  seen.pad_id = request.getPadId();
  seen.top_k = sampling.getTopK();
  seen.top_p = sampling.getTopP();
  seen.temperature = sampling.getTemperature();
  seen.repetition_penalty = sampling.getRepetitionPenalty();
  seen.seed = sampling.getSeed();
  seen.stop_words = request.getStopWords().value_or(std::list<VecTokens>{});
  require(request.getStreaming(), "streaming");
  require(request.getOutputConfig().excludeInputFromOutput, "excludeInputFromOutput");
  if (const auto table = request.getPromptTuningConfig()) {
    const Tensor rows = table->getEmbeddingTable();
    const std::map<DataType, std::string> names = {
        {DataType::kFP32, "float32"}, {DataType::kFP16, "float16"}, {DataType::kBF16, "bfloat16"}};
    require(names.at(rows.getDataType()) == config_["pretrained_config"]["dtype"], "the table's type");
    require(rows.getShape()[1] == hidden_, "the table's size");
    const auto count = static_cast<size_t>(rows.getShape()[0] * rows.getShape()[1]);
    for (size_t i = 0; i < count; ++i) seen.table.push_back(number_at(rows, i));
    seen.extra_ids = table->getInputTokenExtraIds().value_or(VecTokenExtraIds{});
    require(seen.extra_ids.size() == seen.token_ids.size(), "inputTokenExtraIds");
  }
  const auto rows = static_cast<int32_t>(seen.table.size()) / hidden_;
  for (const int32_t token : seen.token_ids) require(token >= 0 && token < vocab_ + rows, "a token id");
  return seen;
}

// What each token of a prompt is. Where it stands behind the same ones as before, with the same extra ids, what the
// cache holds is taken.
std::vector<float> Executor::Impl::held(const SeenRequest& seen) {
  std::vector<float> held;
  uint64_t hash = 1469598103934665603ull;
  for (size_t i = 0; i < seen.token_ids.size(); ++i) {
    const int32_t id = seen.token_ids[i];
    const float number = id < vocab_ ? static_cast<float>(id)
                                     : seen.table[static_cast<size_t>(id - vocab_) * static_cast<size_t>(hidden_)];
    const uint64_t extra = seen.extra_ids.empty() ? 0 : seen.extra_ids[i];
    hash = ((hash ^ static_cast<uint64_t>(id)) * 1099511628211ull ^ extra) * 1099511628211ull;
    held.push_back(reuses_blocks_ ? blocks_.emplace(hash, number).first->second : number);
  }
  return held;
}

void Executor::Impl::write(const SeenRequest& seen) const {
  Json line = {{"token_ids", seen.token_ids},
               {"extra_ids", seen.extra_ids},
               {"table", seen.table},
               {"max_tokens", seen.max_tokens},
               {"stop_words", seen.stop_words}};
  if (seen.end_id) line["end_id"] = *seen.end_id;
  if (seen.top_k) line["top_k"] = *seen.top_k;
  if (seen.top_p) line["top_p"] = *seen.top_p;
  if (seen.temperature) line["temperature"] = *seen.temperature;
  if (seen.seed) line["seed"] = *seen.seed;
  std::ofstream(folder_ / "requests.jsonl", std::ios::app) << line.dump() << "\n";
}

IdType Executor::Impl::enqueue(const Request& request) {
  Open open;
  open.seen = seen(request);
  {
    auto& set = controls();
    const std::lock_guard<std::mutex> lock(set.mutex);
    if (!set.fail_enqueue.empty()) throw std::runtime_error(set.fail_enqueue);
    set.requests.push_back(open.seen);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  open.held = held(open.seen);
  if (!script_.is_null()) {
    write(open.seen);
    const Json& answers = script_["answers"];
    open.scripted = answers[last_ % answers.size()].get<std::vector<int32_t>>();
  }
  open_[++last_] = std::move(open);
  changed_.notify_all();
  return last_;
}

std::vector<Response> Executor::Impl::await(const std::optional<std::chrono::milliseconds>& timeout) {
  {
    const std::lock_guard<std::mutex> lock(controls().mutex);
    if (!controls().fail_wait.empty()) throw std::runtime_error(controls().fail_wait);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, timeout.value(), [this] { return !ready_.empty(); });
  return std::exchange(ready_, {});
}

void Executor::Impl::cancel(IdType request) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = open_.find(request); found != open_.end()) found->second.cancelled = true;
  const std::lock_guard<std::mutex> controls_lock(controls().mutex);
  controls().cancelled.push_back(request);
}

void Executor::Impl::loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!closing_) {
    // An iteration every now and then, for tests hold it up and let it go without a word.
    changed_.wait_for(lock, std::chrono::milliseconds(1), [this] { return closing_; });
    std::vector<IdType> together;
    for (const auto& [id, open] : open_) {
      if (together.size() < most_open_) together.push_back(id);
    }
    {
      const std::lock_guard<std::mutex> controls_lock(controls().mutex);
      controls().most_together = std::max(controls().most_together, static_cast<int>(together.size()));
    }
    for (const IdType id : together) {
      if (respond(id, &open_.at(id))) open_.erase(id);
    }
    changed_.notify_all();
  }
}

int32_t Executor::Impl::next_token(const Open& open) const {
  if (!script_.is_null()) return open.scripted.at(static_cast<size_t>(open.generated) % open.scripted.size());
  std::vector<float> logits(static_cast<size_t>(vocab_));
  r1v::write_logits(open.held, static_cast<int64_t>(open.held.size()) - 1, vocab_, logits.data());
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

bool Executor::Impl::respond(IdType id, Open* open) {
  const auto push = [&](bool is_final, VecTokens tokens, FinishReason reason) {
    ready_.emplace_back(id, Result{is_final, {std::move(tokens)}, {reason}});
    return is_final;
  };
  if (open->cancelled) return push(true, {}, FinishReason::kCANCELLED);
  std::string error;
  std::optional<FinishReason> end_by;
  {
    const std::lock_guard<std::mutex> lock(controls().mutex);
    const auto& most = controls().most_tokens;
    if (most && open->generated >= *most) return false;
    error = controls().fail_request;
    end_by = controls().end_by;
  }
  if (!error.empty()) {
    ready_.emplace_back(id, error);
    return true;
  }
  const int32_t token = next_token(*open);
  ++open->generated;
  open->held.push_back(static_cast<float>(token));
  if (end_by) return push(true, {token}, *end_by);
  if (token == open->seen.end_id) return push(true, {}, FinishReason::kEND_ID);
  const auto& words = open->seen.stop_words;
  if (std::find(words.begin(), words.end(), VecTokens{token}) != words.end())
    return push(true, {token}, FinishReason::kSTOP_WORDS);
  const bool last = open->generated == open->seen.max_tokens;
  return push(last, {token}, last ? FinishReason::kLENGTH : FinishReason::kNOT_FINISHED);
}

Executor::Executor(std::filesystem::path const& modelPath, ModelType modelType, ExecutorConfig const& executorConfig) {
  require(modelType == ModelType::kDECODER_ONLY, "modelType");
  mImpl = std::make_unique<Impl>(modelPath, executorConfig);
}
Executor::~Executor() = default;
IdType Executor::enqueueRequest(Request const& request) { return mImpl->enqueue(request); }
std::vector<Response> Executor::awaitResponses(std::optional<std::chrono::milliseconds> const& timeout) {
  return mImpl->await(timeout);
}
void Executor::cancelRequest(IdType requestId) { mImpl->cancel(requestId); }

}  // namespace tensorrt_llm::executor
