#include "backends/tensorrt/cuda.h"

#include <algorithm>

#include "base/shared_library.h"

namespace r1v::trt {
namespace {

constexpr char kInstallCuda[] =
    "install the CUDA runtime and name its libcudart.so by R1V_CUDART; a Python environment may have one in "
    "site-packages/nvidia";

LibrarySearch cuda_search() {
  const std::string soname = "libcudart.so." + std::to_string(CUDART_VERSION / 1000);
  return {"CUDA's runtime", "libcudart.so", "R1V_CUDART", {soname}, kInstallCuda};
}

[[noreturn]] void throw_no_gpu(int gpu, const std::string& found) {
  throw Error(Code::kCapability, "TensorRT engines run on a CUDA GPU.",
              {"device cuda", "GPU " + std::to_string(gpu), found, "use a machine with such a GPU and its driver"});
}

}  // namespace

Cuda::Cuda(int gpu) : gpu_(gpu) {
  const SharedLibrary opened = open_library(cuda_search(), "");
#define R1V_CUDA_LOAD(name) api_.name = reinterpret_cast<decltype(api_.name)>(opened.function(#name));
  R1V_CUDA_FUNCTIONS(R1V_CUDA_LOAD)
#undef R1V_CUDA_LOAD
  int count = 0;
  if (const cudaError_t error = api_.cudaGetDeviceCount(&count)) throw_no_gpu(gpu, api_.cudaGetErrorString(error));
  if (gpu >= count) throw_no_gpu(gpu, std::to_string(count) + (count == 1 ? " GPU" : " GPUs"));
  int major = 0, minor = 0;
  check(api_.cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu), "GPU");
  check(api_.cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, gpu), "GPU");
  compute_capability_ = 10 * major + minor;
}

void Cuda::select() const { check(api_.cudaSetDevice(gpu_), "GPU"); }

void Cuda::check(cudaError_t result, const std::string& where) const {
  if (result == cudaSuccess) return;
  api_.cudaGetLastError();  // Else the next call would report it again.
  const std::string message = api_.cudaGetErrorString(result);
  if (result == cudaErrorMemoryAllocation) {
    throw Error(Code::kMemory, "The GPU has not enough memory.",
                {where, "", message, "use a smaller cache, fewer rows, or a GPU with more memory"});
  }
  throw Error(Code::kGraph, "The GPU fails.", {where, "", message, "see the driver's log"});
}

Stream::Stream(const Cuda& cuda) : cuda_(cuda) {
  cuda.select();
  // Else it would wait for work of others on the default stream.
  cuda.check(cuda.api().cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "stream");
}

Stream::~Stream() { cuda_.api().cudaStreamDestroy(handle_); }

void Stream::copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  cuda_.check(cuda_.api().cudaMemcpyAsync(to, from, bytes, kind, handle_), "copy");
}

void Stream::copy_pieces(void* to, size_t to_stride, const void* from, size_t from_stride, size_t bytes, size_t rows) {
  if (bytes == 0) return;
  cuda_.check(
      cuda_.api().cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, rows, cudaMemcpyDeviceToDevice, handle_),
      "copy");
}

void Stream::clear(void* memory, size_t bytes) {
  cuda_.check(cuda_.api().cudaMemsetAsync(memory, 0, bytes, handle_), "memory");
}

void Stream::synchronize() { cuda_.check(cuda_.api().cudaStreamSynchronize(handle_), "stream"); }

DeviceBuffer::DeviceBuffer(Stream& stream, size_t bytes) : cuda_(stream.cuda()), bytes_(bytes) {
  void* data = nullptr;
  cuda_.check(cuda_.api().cudaMalloc(&data, std::max<size_t>(bytes, 1)), std::to_string(bytes) + " bytes");
  data_ = static_cast<char*>(data);
  try {
    stream.clear(data_, bytes);
  } catch (...) {
    cuda_.api().cudaFree(data_);
    throw;
  }
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cuda_.api().cudaFree(data_);
}

std::unique_ptr<CapturedGraph> CapturedGraph::capture(Stream& stream, const std::function<bool()>& work) {
  const Cuda& cuda = stream.cuda();
  const CudaApi& api = cuda.api();
  // Another thread may encode images meanwhile.
  cuda.check(api.cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal), "graph");
  const bool worked = work();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  const bool ended = api.cudaStreamEndCapture(stream.handle(), &graph) == cudaSuccess && graph != nullptr;
  const bool made = ended && worked && api.cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess;
  if (ended) api.cudaGraphDestroy(graph);
  if (made) return std::unique_ptr<CapturedGraph>(new CapturedGraph(cuda, executable));
  api.cudaGetLastError();  // Else the next call would report it again.
  return nullptr;
}

CapturedGraph::~CapturedGraph() { cuda_.api().cudaGraphExecDestroy(handle_); }

void CapturedGraph::launch(Stream& stream) const {
  cuda_.check(cuda_.api().cudaGraphLaunch(handle_, stream.handle()), "graph");
}

}  // namespace r1v::trt
