// A plan, loaded: which GPU memory each of its tensors has, and runs of it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/tensorrt/cuda.h"
#include "backends/tensorrt/library.h"
#include "backends/tensorrt/plan.h"

namespace r1v::trt {

class Session {
 public:
  // `library` and `cuda` must outlive the session. Throws kBundle: TensorRT refuses the plan, or the plan's tensors are
  // not those of its description.
  Session(const Bundle& bundle, const Library& library, const Cuda& cuda, Plan plan);

  const Plan& plan() const { return plan_; }
  const Library& library() const { return library_; }
  Stream& stream() { return stream_; }
  // Held while anything is run.
  std::mutex& mutex() { return mutex_; }
  // Each profile has an execution context of its own, made when it is first needed. Throws kMemory.
  nvinfer1::IExecutionContext& context(int profile);

 private:
  void require_described() const;

  const Library& library_;
  const Plan plan_;
  std::mutex mutex_;
  Stream stream_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::map<int, std::unique_ptr<nvinfer1::IExecutionContext>> contexts_;
};

// Runs of a plan with the same shapes, on the same memory. The session's mutex is held by whoever uses it.
class BoundRun {
 public:
  // Tensors get memory here, but for those that `given` names, whose memory is the caller's.
  BoundRun(Session& session, SymbolSizes sizes, std::map<std::string, void*> given = {});

  const SymbolSizes& sizes() const { return sizes_; }
  void set_given(std::map<std::string, void*> given) { given_ = std::move(given); }

  // Copies an input to the GPU. Throws kBundle: the plan's tensor has another size.
  void write(const std::string& name, const float* numbers, size_t count);
  void write(const std::string& name, const int64_t* numbers, size_t count);
  // Starts a run; a replay of the captured one if there is one.
  void run();
  // Waits for the run, and copies an output from the GPU. Throws kGraph: the run failed.
  void read(const std::string& name, float* numbers, size_t count);
  // Records the run, after one that was not recorded: TensorRT may allocate in its first. What cannot be recorded runs
  // as before.
  void capture();

 private:
  struct Tensor {
    const Binding* binding;
    std::vector<int64_t> shape;
    std::vector<char> host;
    DeviceBuffer memory;  // after what is copied to it: freeing it waits for the copies
  };

  Tensor& tensor(const std::string& name, size_t count);
  void bind();
  nvinfer1::IExecutionContext& context();

  Session& session_;
  const SymbolSizes sizes_;
  const int profile_;
  std::map<std::string, void*> given_;
  std::map<std::string, Tensor> tensors_;
  std::unique_ptr<CapturedGraph> captured_;
};

}  // namespace r1v::trt
