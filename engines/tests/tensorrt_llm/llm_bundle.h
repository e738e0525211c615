// A bundle with a checkpoint, and an engine that was built from it, for the TensorRT-LLM that stands in.
#pragma once

#include <string>

#include "backends/tensorrt_llm/engine_config.h"
#include "base/sha256.h"
#include "tests/temporary_folder.h"

namespace r1v {

class LlmBundle {
 public:
  LlmBundle() {
    bundle.folder = folder_.path() / "bundle";
    bundle.contract = {ElementType::kFloat16, {4, 2, 3, 2, 40, 2, 2, 2}, {}};
    bundle.pipeline.engines["tensorrt-llm"].files["checkpoint"] = "checkpoint";
    checkpoint = {{"architecture", "Qwen2ForCausalLM"},
                  {"dtype", "bfloat16"},
                  {"vocab_size", 40},
                  {"hidden_size", 2},
                  {"rotary_base", 1e6},
                  {"mapping", {{"world_size", 1}, {"tp_size", 1}, {"pp_size", 1}}},
                  {"quantization", {{"quant_algo", nullptr}, {"kv_cache_quant_algo", nullptr}}}};
    config = {{"pretrained_config", checkpoint},
              {"build_config",
               {{"max_batch_size", 3},
                {"max_input_len", 500},
                {"max_seq_len", 512},
                {"max_num_tokens", 600},
                {"max_prompt_embedding_table_size", 24}}}};
    write();
  }

  // Writes what was changed.
  void write() {
    const std::string path = "engines/tensorrt-llm/checkpoint/config.json", content = checkpoint.dump();
    folder_.write("bundle/" + path, content);
    Sha256 sha256;
    sha256.update(content.data(), content.size());
    const std::string hash = sha256.hex();
    bundle.manifest.files[path] = {hash, content.size()};
    write_engine("config.json", config.dump());
    write_engine("r1v_export.json", Json({{path, hash}}).dump());
    for (int rank = 0; rank < checkpoint["mapping"]["world_size"]; ++rank)
      write_engine("rank" + std::to_string(rank) + ".engine", "engine");
  }
  void write_engine(const std::string& name, const std::string& content) const {
    folder_.write("engine/" + name, content);
  }

  std::filesystem::path engine() const { return folder_.path() / "engine"; }

  Bundle bundle{};
  Json checkpoint, config;  // of the bundle, and of the engine

 private:
  TemporaryFolder folder_;
};

}  // namespace r1v
