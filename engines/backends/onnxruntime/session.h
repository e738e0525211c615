// A session on one graph.
#pragma once

#include <string>
#include <vector>

#include "backends/onnxruntime/library.h"
#include "backends/onnxruntime/options.h"

namespace r1v::ort {

enum class Device { kCpu, kCuda, kTensorRt };

struct DeviceOptions {
  Device device = Device::kCpu;
  int gpu = 0;
  int threads = 0;  // that one operator may use on the CPU; 0 for what the bundle says
};

// An input: float32 or int64 numbers of the caller's.
struct Array {
  const void* data;
  std::vector<int64_t> shape;
  ElementType type;
};

// Any number of threads may run it at a time.
class GraphSession {
 public:
  // Throws kCapability: ONNX Runtime has no such device; kBundle: it refuses the graph, or the graph's tensors are not
  // the contract's.
  GraphSession(const Library& library, const Bundle& bundle, const GraphContract& graph, const GraphOptions& options,
               const DeviceOptions& device);
  GraphSession(const GraphSession&) = delete;
  GraphSession& operator=(const GraphSession&) = delete;

  const Library& library() const { return library_; }
  Session* handle() const { return session_.get(); }
  // Of a run over many tokens: the memory of its activations is given back after it. Null for what is run all the time.
  const RunOptions* once() const { return once_.get(); }
  // What the graph computes in.
  ElementType compute() const { return compute_; }
  // What a decoder graph has its cache in: that, or int8, which its attention computes with.
  ElementType cache() const { return cache_; }

  // The single output of the graph, float32, for its inputs in order. Throws kGraph: ONNX Runtime fails, a number
  // leaves the range of the graph's type, or the output has another shape than `shape`.
  std::vector<float> run(const std::vector<Array>& inputs, const std::vector<int64_t>& shape) const;

  // The error of a run that failed; frees `status`. Nothing if there is none.
  void check_run(Status* status, const std::vector<Array>& inputs) const;

 private:
  const Library& library_;
  const GraphContract graph_;
  Owned<Session> session_;
  Owned<MemoryInfo> memory_;
  Owned<RunOptions> once_;
  ElementType compute_ = ElementType::kFloat32, cache_ = ElementType::kFloat32;
};

}  // namespace r1v::ort
