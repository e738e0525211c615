// What libr1v uses of TensorRT-LLM's executor, written for the tests after the public header of this name (1.0 to 1.2):
// names, parameters and their order are the library's, what is inside the classes is not.
#pragma once

#include <chrono>
#include <filesystem>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tensorrt_llm/executor/tensor.h"
#include "tensorrt_llm/executor/types.h"

namespace tensorrt_llm::mpi {
class MpiComm;
}  // namespace tensorrt_llm::mpi

namespace tensorrt_llm::executor {

STAND_IN_API char const* version() noexcept;

class STAND_IN_API SamplingConfig {
 public:
  explicit SamplingConfig(SizeType32 beamWidth = 1, std::optional<SizeType32> const& topK = std::nullopt,
                          std::optional<FloatType> const& topP = std::nullopt);

  [[nodiscard]] SizeType32 getBeamWidth() const;
  [[nodiscard]] std::optional<SizeType32> getTopK() const;
  [[nodiscard]] std::optional<FloatType> getTopP() const;
  [[nodiscard]] std::optional<RandomSeedType> getSeed() const;
  [[nodiscard]] std::optional<FloatType> getTemperature() const;
  [[nodiscard]] std::optional<FloatType> getRepetitionPenalty() const;

  void setTopK(std::optional<SizeType32> const& topK);
  void setTopP(std::optional<FloatType> const& topP);
  void setSeed(std::optional<RandomSeedType> const& seed);
  void setTemperature(std::optional<FloatType> const& temperature);
  void setRepetitionPenalty(std::optional<FloatType> const& repetitionPenalty);

 private:
  SizeType32 mBeamWidth;
  std::optional<SizeType32> mTopK;
  std::optional<FloatType> mTopP, mTemperature, mRepetitionPenalty;
  std::optional<RandomSeedType> mSeed;
};

class STAND_IN_API OutputConfig {
 public:
  explicit OutputConfig(bool returnLogProbs = false, bool returnContextLogits = false,
                        bool returnGenerationLogits = false, bool excludeInputFromOutput = false);

  bool returnLogProbs;
  bool returnContextLogits;
  bool returnGenerationLogits;
  bool excludeInputFromOutput;
};

class STAND_IN_API PromptTuningConfig {
 public:
  explicit PromptTuningConfig(Tensor embeddingTable, std::optional<VecTokenExtraIds> inputTokenExtraIds = std::nullopt);

  [[nodiscard]] Tensor getEmbeddingTable() const;
  [[nodiscard]] std::optional<VecTokenExtraIds> getInputTokenExtraIds() const;

 private:
  Tensor mEmbeddingTable;
  std::optional<VecTokenExtraIds> mInputTokenExtraIds;
};

class STAND_IN_API Request {
 public:
  Request(VecTokens inputTokenIds, SizeType32 maxTokens, bool streaming = false,
          SamplingConfig const& samplingConfig = SamplingConfig(), OutputConfig const& outputConfig = OutputConfig(),
          std::optional<SizeType32> const& endId = std::nullopt, std::optional<SizeType32> const& padId = std::nullopt);

  Request(Request const& other);
  Request(Request&& other) noexcept;
  Request& operator=(Request const& other);
  Request& operator=(Request&& other) noexcept;
  ~Request();

  [[nodiscard]] VecTokens getInputTokenIds() const;
  [[nodiscard]] SizeType32 getMaxTokens() const;
  [[nodiscard]] bool getStreaming() const;
  [[nodiscard]] SamplingConfig getSamplingConfig() const;
  [[nodiscard]] OutputConfig getOutputConfig() const;
  [[nodiscard]] std::optional<SizeType32> getEndId() const;
  [[nodiscard]] std::optional<SizeType32> getPadId() const;
  [[nodiscard]] std::optional<std::list<VecTokens>> getStopWords() const;
  [[nodiscard]] std::optional<PromptTuningConfig> getPromptTuningConfig() const;

  void setStopWords(std::list<VecTokens> const& stopWords);
  void setPromptTuningConfig(PromptTuningConfig const& pTuningConfig);

 private:
  class Impl;
  std::unique_ptr<Impl> mImpl;
};

struct Result {
  bool isFinal;
  BeamTokens outputTokenIds;
  std::vector<FinishReason> finishReasons;
};

class STAND_IN_API Response {
 public:
  Response(IdType requestId, std::string errorMsg, std::optional<IdType> clientId = std::nullopt);
  Response(IdType requestId, Result Result, std::optional<IdType> clientId = std::nullopt);

  ~Response();
  Response(Response const& other);
  Response(Response&& other) noexcept;
  Response& operator=(Response const& other);
  Response& operator=(Response&& other) noexcept;

  [[nodiscard]] IdType getRequestId() const;
  [[nodiscard]] bool hasError() const;
  [[nodiscard]] std::string const& getErrorMsg() const;
  [[nodiscard]] Result const& getResult() const;

 private:
  class Impl;
  std::unique_ptr<Impl> mImpl;
};

class STAND_IN_API KvCacheConfig {
 public:
  explicit KvCacheConfig(bool enableBlockReuse = true);

  [[nodiscard]] bool getEnableBlockReuse() const;

 private:
  bool mEnableBlockReuse;
};

class STAND_IN_API OrchestratorConfig {
 public:
  explicit OrchestratorConfig(bool isOrchestrator = true, std::string workerExecutablePath = "",
                              std::shared_ptr<mpi::MpiComm> orchLeaderComm = nullptr, bool spawnProcesses = true);

  [[nodiscard]] bool getIsOrchestrator() const;
  [[nodiscard]] std::string getWorkerExecutablePath() const;

 private:
  bool mIsOrchestrator;
  std::string mWorkerExecutablePath;
};

class STAND_IN_API ParallelConfig {
 public:
  explicit ParallelConfig(CommunicationType commType = CommunicationType::kMPI,
                          CommunicationMode commMode = CommunicationMode::kLEADER,
                          std::optional<std::vector<SizeType32>> deviceIds = std::nullopt,
                          std::optional<std::vector<SizeType32>> participantIds = std::nullopt,
                          std::optional<OrchestratorConfig> const& orchestratorConfig = std::nullopt);

  [[nodiscard]] CommunicationMode getCommunicationMode() const;
  [[nodiscard]] std::optional<OrchestratorConfig> getOrchestratorConfig() const;

 private:
  CommunicationMode mCommMode;
  std::optional<OrchestratorConfig> mOrchestratorConfig;
};

class STAND_IN_API ExecutorConfig {
 public:
  explicit ExecutorConfig(SizeType32 maxBeamWidth = 1);

  [[nodiscard]] KvCacheConfig getKvCacheConfig() const;
  [[nodiscard]] std::optional<ParallelConfig> getParallelConfig() const;

  void setKvCacheConfig(KvCacheConfig const& kvCacheConfig);
  void setParallelConfig(ParallelConfig const& parallelConfig);

 private:
  KvCacheConfig mKvCacheConfig;
  std::optional<ParallelConfig> mParallelConfig;
};

class STAND_IN_API Executor {
 public:
  Executor(std::filesystem::path const& modelPath, ModelType modelType, ExecutorConfig const& executorConfig);
  ~Executor();
  Executor(Executor const& executor) = delete;
  Executor& operator=(Executor const& executor) = delete;

  [[nodiscard]] IdType enqueueRequest(Request const& request);
  [[nodiscard]] std::vector<Response> awaitResponses(
      std::optional<std::chrono::milliseconds> const& timeout = std::nullopt);
  void cancelRequest(IdType requestId);

 private:
  class Impl;
  std::unique_ptr<Impl> mImpl;
};

}  // namespace tensorrt_llm::executor
