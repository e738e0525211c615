// What a bundle's checkpoint and an engine that was built from it say of themselves, compared.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "bundle/bundle.h"

namespace r1v::trtllm {

inline constexpr char kTarget[] = "tensorrt-llm";

struct EngineConfig {
  // Of the checkpoint.
  ElementType dtype;  // that the model is computed in, and image embeddings are given in
  int64_t vocab, hidden, ranks;
  bool reuses_blocks;  // prompts that begin alike can be computed once
  // What the engine was built for: requests; tokens of a prompt, of a prompt and its answer, and of a step; rows of the
  // prompt embedding table, over all requests.
  int64_t max_batch_size, max_input_len, max_seq_len, max_num_tokens, max_table_rows;
};

// Compares the engine of a folder, which `r1v-export engine` or trtllm-build wrote, with the bundle's checkpoint.
// Throws kBundle: the bundle has no such checkpoint, or the engine is damaged, or of another one.
EngineConfig read_engine_config(const Bundle& bundle, const std::filesystem::path& engine);

}  // namespace r1v::trtllm
