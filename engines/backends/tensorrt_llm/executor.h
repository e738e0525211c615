// A TensorRT-LLM engine through its executor: prompts in, tokens out as they are made.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backends/generator.h"
#include "backends/tensorrt_llm/engine_config.h"
#include "backends/tensorrt_llm/library.h"

namespace r1v::trtllm {

// Batches the requests that are open at a time itself. A streamed response brings the new tokens alone; the end token
// is not among them, a stop word is.
class ExecutorGenerator : public Generator {
 public:
  // Takes nine tenths of the GPU memory that is free for its cache, so whatever else needs some comes first.
  // `reuse_prefixes`: where the engine can, prompts that begin alike are computed once. Throws kCapability:
  // TensorRT-LLM cannot open the engine here.
  ExecutorGenerator(const Library& library, const EngineConfig& config, const std::filesystem::path& engine,
                    int64_t image_token_id, bool reuse_prefixes);
  ~ExecutorGenerator() override { module_.close(executor_); }
  ExecutorGenerator(const ExecutorGenerator&) = delete;
  ExecutorGenerator& operator=(const ExecutorGenerator&) = delete;

  std::string description() const override { return "tensorrt-llm " + version_ + ", executor"; }
  int64_t max_tokens() const override { return config_.max_seq_len; }
  uint64_t start(const std::vector<int64_t>& token_ids, const std::vector<EmbeddedImage>& images,
                 const Sampling& sampling, const std::vector<int64_t>& stop_ids) override;
  std::vector<Generated> wait(std::chrono::milliseconds most) override;
  void cancel(uint64_t request) noexcept override;

 private:
  void require_fits(int64_t tokens, int64_t rows, int64_t max_new_tokens) const;
  Generated read(const r1v_trtllm_response& response);

  const r1v_trtllm_module& module_;
  const std::string version_;
  const EngineConfig config_;
  const int64_t image_token_id_;
  void* executor_;
  std::map<uint64_t, std::optional<int64_t>> end_ids_;  // of each open request the token that it ends by unseen
};

}  // namespace r1v::trtllm
