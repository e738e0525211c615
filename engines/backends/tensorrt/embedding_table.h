// Embeddings of tokens: rows of the table of a bundle's standard embed graph, looked up on the CPU.
#pragma once

#include <memory>

#include "base/files.h"
#include "bundle/bundle.h"

namespace r1v::trt {

class EmbeddingTable {
 public:
  // Throws kBundle: the graph or its weights are missing or malformed, or the table is not of the contract's sizes.
  explicit EmbeddingTable(const Bundle& bundle);

  // Writes embeddings [count, hidden] of tokens. The n-th image token takes row n of `image_embeds` [image_tokens,
  // hidden], rounded to the table's type; those beyond the last row take the table's. Throws kInput: there is no such
  // token.
  void look_up(const int64_t* input_ids, int64_t count, const float* image_embeds, int64_t image_tokens,
               float* inputs_embeds) const;

 private:
  const int64_t image_token_id_, vocab_, hidden_;
  ElementType dtype_ = ElementType::kFloat32;
  std::unique_ptr<const MappedFile> file_;
  const char* rows_ = nullptr;
};

}  // namespace r1v::trt
