// Stands in for libcudart. Streams do nothing before they are waited for, so that what is not waited for is seen.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "tests/tensorrt/stand_in/controls.h"

struct CUstream_st {
  std::vector<std::function<void()>> work;
  std::vector<std::function<void()>>* captured = nullptr;
};
struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

namespace {

using r1v::stand_in::controls;
using r1v::stand_in::host_address;
using r1v::stand_in::is_device;

constexpr uintptr_t kDevice = uintptr_t{1} << 62;
constexpr size_t kAlignment = 256;

std::recursive_mutex mutex;
std::set<cudaStream_t> streams;
thread_local int capturing = 0;

using Lock = std::lock_guard<std::recursive_mutex>;

void finish(cudaStream_t stream) {
  std::vector<std::function<void()>> work;
  std::swap(work, stream->work);
  for (const auto& each : work) each();
}

cudaError_t misused(const char* what) {
  controls().misuse = what;
  return cudaErrorInvalidValue;
}

bool fits(const void* to, const void* from, cudaMemcpyKind kind) {
  return is_device(to) == (kind != cudaMemcpyDeviceToHost) && is_device(from) == (kind != cudaMemcpyHostToDevice);
}

char* address(const void* memory) {
  return is_device(memory) ? host_address(memory) : static_cast<char*>(const_cast<void*>(memory));
}

}  // namespace

namespace r1v::stand_in {

Controls& controls() {
  static Controls controls;
  return controls;
}

bool is_device(const void* address) { return (reinterpret_cast<uintptr_t>(address) & kDevice) != 0; }

char* host_address(const void* device_address) {
  return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(device_address) & ~kDevice);
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  const Lock lock(mutex);
  (stream->captured != nullptr ? *stream->captured : stream->work).push_back(std::move(work));
  return cudaSuccess;
}

}  // namespace r1v::stand_in

using r1v::stand_in::enqueue;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = controls().gpus;
  return controls().gpus > 0 ? cudaSuccess : cudaErrorInsufficientDriver;
}

cudaError_t cudaSetDevice(int device) { return device < controls().gpus ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 9;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation     ? "out of memory"
         : error == cudaErrorInsufficientDriver ? "no driver"
                                                : "invalid argument";
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const Lock lock(mutex);
  if (capturing > 0) return cudaErrorStreamCaptureUnsupported;
  if (controls().out_of_memory) return cudaErrorMemoryAllocation;
  void* host = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  std::memset(host, 0xff, bytes);  // not a number
  ++controls().allocations;
  *memory = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(host) | kDevice);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  const Lock lock(mutex);
  for (cudaStream_t stream : streams) finish(stream);  // CUDA waits for the GPU here too.
  --controls().allocations;
  std::free(host_address(memory));
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (!fits(to, from, kind)) return misused("a copy between other memories than it says");
  return enqueue(stream, [=] { std::memcpy(address(to), address(from), bytes); });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (!fits(to, from, kind)) return misused("a copy between other memories than it says");
  if (width > to_pitch || width > from_pitch) return misused("a copy of rows that overlap");
  return enqueue(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memcpy(address(to) + row * to_pitch, address(from) + row * from_pitch, width);
    }
  });
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (!is_device(memory)) return misused("memory of the host is set");
  return enqueue(stream, [=] { std::memset(address(memory), value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(mutex);
  *stream = new CUstream_st;
  streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(mutex);
  finish(stream);
  streams.erase(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(mutex);
  if (stream->captured != nullptr) return misused("a stream is waited for while it is captured");
  finish(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(mutex);
  stream->captured = new std::vector<std::function<void()>>;
  ++capturing;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(mutex);
  --capturing;
  const auto* captured = std::exchange(stream->captured, nullptr);
  *graph = controls().capturable ? new CUgraph_st{*captured} : nullptr;
  delete captured;
  return controls().capturable ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  ++controls().captures;
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ++controls().launches;
  for (const auto& each : executable->work) enqueue(stream, each);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
