// The CUDA runtime, opened at run time: a GPU, its memory, and streams of work for it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/error.h"

namespace r1v::trt {

// The functions that are called.
#define R1V_CUDA_FUNCTIONS(F)  \
  F(cudaGetDeviceCount)        \
  F(cudaSetDevice)             \
  F(cudaDeviceGetAttribute)    \
  F(cudaGetLastError)          \
  F(cudaGetErrorString)        \
  F(cudaMalloc)                \
  F(cudaFree)                  \
  F(cudaMemcpyAsync)           \
  F(cudaMemcpy2DAsync)         \
  F(cudaMemsetAsync)           \
  F(cudaStreamCreateWithFlags) \
  F(cudaStreamDestroy)         \
  F(cudaStreamSynchronize)     \
  F(cudaStreamBeginCapture)    \
  F(cudaStreamEndCapture)      \
  F(cudaGraphInstantiate)      \
  F(cudaGraphLaunch)           \
  F(cudaGraphDestroy)          \
  F(cudaGraphExecDestroy)

struct CudaApi {
#define R1V_CUDA_MEMBER(name) decltype(&::name) name;
  R1V_CUDA_FUNCTIONS(R1V_CUDA_MEMBER)
#undef R1V_CUDA_MEMBER
};

// One GPU. Any number of threads may use it.
class Cuda {
 public:
  // The library is R1V_CUDART of the environment, or in that folder; else what the loader finds. Throws kCapability:
  // there is none, or there is no such GPU.
  explicit Cuda(int gpu);

  const CudaApi& api() const { return api_; }
  // As 89 for 8.9.
  int compute_capability() const { return compute_capability_; }

  // Makes this GPU the calling thread's.
  void select() const;
  // Throws kMemory or kGraph, with CUDA's message, if `result` is an error.
  void check(cudaError_t result, const std::string& where) const;

 private:
  CudaApi api_{};
  const int gpu_;
  int compute_capability_ = 0;
};

// Work that a GPU does in order. One thread at a time.
class Stream {
 public:
  explicit Stream(const Cuda& cuda);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  const Cuda& cuda() const { return cuda_; }
  cudaStream_t handle() const { return handle_; }

  // Copies between memory of the GPU and of the host, which must stay until `synchronize`.
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
  // Copies `rows` pieces of `bytes` within the GPU's memory; pieces begin every `to_stride` and `from_stride` bytes.
  void copy_pieces(void* to, size_t to_stride, const void* from, size_t from_stride, size_t bytes, size_t rows);
  void clear(void* memory, size_t bytes);
  // Waits for all of it.
  void synchronize();

 private:
  const Cuda& cuda_;
  cudaStream_t handle_ = nullptr;
};

// Memory of a GPU, zeros at first: attention multiplies slots that it does not see by 0, which no NaN may meet.
class DeviceBuffer {
 public:
  DeviceBuffer(Stream& stream, size_t bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : cuda_(other.cuda_), data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer();

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const Cuda& cuda_;
  char* data_ = nullptr;
  size_t bytes_;
};

// Work of a stream that was recorded, to be done again on the same memory.
class CapturedGraph {
 public:
  // Records what `work` puts on the stream. Null where that fails or cannot be recorded.
  static std::unique_ptr<CapturedGraph> capture(Stream& stream, const std::function<bool()>& work);
  ~CapturedGraph();
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;

  void launch(Stream& stream) const;

 private:
  CapturedGraph(const Cuda& cuda, cudaGraphExec_t handle) : cuda_(cuda), handle_(handle) {}

  const Cuda& cuda_;
  const cudaGraphExec_t handle_;
};

}  // namespace r1v::trt
