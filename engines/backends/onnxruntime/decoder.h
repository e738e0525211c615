// The decoder graph with a key-value cache that no step copies.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backends/engine.h"
#include "backends/onnxruntime/cache_memory.h"
#include "backends/onnxruntime/session.h"

namespace r1v::ort {

// One tensor of the cache, [batch, kv_heads, slots, head_dim]: zeros on the CPU, or memory of a GPU.
class CacheTensor {
 public:
  CacheTensor(const GraphSession& session, const std::vector<int64_t>& shape, Device device, Allocator* gpu);
  char* data() const { return data_; }
  // As of `CacheMemory`; on the CPU only.
  bool resize(size_t bytes);
  void release(size_t begin, size_t end) { host_->release(begin, end); }

 private:
  std::optional<CacheMemory> host_;
  Owned<Value> value_;
  char* data_ = nullptr;
};

class BoundStep;

// Past and present of each layer are bound to one buffer, which ONNX Runtime updates in place. One new token per row is
// a single run, bound once for the same rows. Several new tokens (a prompt) run row by row, each on its own part of the
// buffers and without its padding: GroupQueryAttention takes several tokens behind a filled cache for one row only.
//
// A row has `most_slots` slots on a CPU, if that is more than are asked for and the system has addresses for them. It
// takes the memory of those in use, and the cache grows without being copied.
class OnnxRuntimeDecoder : public Decoder {
 public:
  OnnxRuntimeDecoder(const GraphSession& session, const Sizes& sizes, int64_t batch, int64_t capacity,
                     const DeviceOptions& device, int64_t most_slots);
  ~OnnxRuntimeDecoder() override;

  int64_t batch() const override { return batch_; }
  int64_t capacity() const override { return capacity_; }
  void step(const DecoderStep& step, float* logits) override;
  void copy_row(int64_t source, int64_t target, int64_t length) override;
  void swap_rows(int64_t a, int64_t b, int64_t length) override;
  void resize(int64_t batch, int64_t capacity, const std::vector<int64_t>& lengths) override;

 private:
  friend class BoundStep;

  void allocate(int64_t most_slots);
  std::vector<int64_t> shape(int64_t batch, int64_t slots) const;
  void require_host() const;
  // First byte of a head's slots, in a tensor with so many of each, on the CPU.
  size_t offset(int64_t row, int64_t head, int64_t slots) const;
  char* slots(const CacheTensor& tensor, int64_t row, int64_t head) const {
    return tensor.data() + offset(row, head, slots_);
  }
  CacheTensor copied(const CacheTensor& tensor, int64_t batch, int64_t slots, const std::vector<int64_t>& lengths);
  void release_behind(CacheTensor& tensor, const std::vector<int64_t>& lengths);
  size_t slot_bytes() const;

  const GraphSession& session_;
  const Sizes sizes_;
  int64_t batch_, capacity_, slots_;  // slots_: that a row has, capacity_ or more
  const DeviceOptions device_;
  Owned<MemoryInfo> memory_;  // that the cache lies in
  Owned<Allocator> gpu_;
  std::vector<std::pair<std::string, std::string>> names_;  // past and present
  std::vector<CacheTensor> cache_;                          // in the order of names_
  std::unique_ptr<BoundStep> one_token_;
};

}  // namespace r1v::ort
