// The decoder plan with its cache: prompts in pieces, single tokens as captured graphs.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "backends/engine.h"
#include "backends/tensorrt/session.h"

namespace r1v::trt {

// Past and present of each layer are one buffer of the GPU, [batch, kv_heads, slots, head_dim] with as many slots as
// the plan was built for, which TensorRT updates in place. Prompts longer than the plan takes at once go in pieces. One
// new token of each of the same rows always runs on the same memory, so that run is captured once and replayed.
class TensorRtDecoder : public Decoder {
 public:
  // Throws kUsage: the plan was built for fewer rows or slots; kMemory.
  TensorRtDecoder(Session& session, const Sizes& sizes, int64_t batch, int64_t capacity);

  int64_t batch() const override { return batch_; }
  int64_t capacity() const override { return capacity_; }
  void step(const DecoderStep& step, float* logits) override;
  void copy_row(int64_t source, int64_t target, int64_t length) override;
  void swap_rows(int64_t a, int64_t b, int64_t length) override;
  void resize(int64_t batch, int64_t capacity, const std::vector<int64_t>& lengths) override;

 private:
  void decode(const DecoderStep& step, float* logits);
  // Tokens start ... stop - 1 of every row of a step, and the logits of those among them that it asks for.
  void run_piece(const DecoderStep& step, int64_t start, int64_t stop, float* logits);
  BoundRun& prompt_run(int64_t first_row, SymbolSizes sizes);
  static void write(BoundRun* run, const DecoderStep& step, int64_t hidden);

  void require_built_for(int64_t batch, int64_t capacity) const;
  DeviceBuffer new_cache(int64_t batch);
  // Addresses of past and present of all layers, from a row on.
  std::map<std::string, void*> cache_from(int64_t row) const;
  char* row(const DeviceBuffer& cache, int64_t row) const;

  Session& session_;
  const Sizes sizes_;
  const int64_t slots_;  // of a row
  int64_t batch_, capacity_;
  size_t slot_bytes_, row_bytes_;                              // of one tensor of the cache, and of one head of it
  std::vector<std::pair<std::string, std::string>> names_;     // past and present
  std::vector<DeviceBuffer> cache_;                            // in the order of names_
  std::map<std::pair<int64_t, int64_t>, BoundRun> one_token_;  // by first row and rows
  std::unique_ptr<BoundRun> prompt_;                           // of the latest piece's shape
};

// Slots of a row that a decoder plan was built for. Throws kBundle: its cache is not the contract's.
int64_t slots_of(const Plan& plan, const Sizes& sizes);

}  // namespace r1v::trt
