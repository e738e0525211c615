#include "backends/tensorrt/library.h"

#include <utility>

#include "base/error.h"
#include "base/shared_library.h"

namespace r1v::trt {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr char kName[] = "TensorRT-RTX", kFile[] = "libtensorrt_rtx.so";
#else
constexpr char kName[] = "TensorRT", kFile[] = "libnvinfer.so";
#endif

constexpr size_t kMostErrorBytes = 2000;

std::string install_tensorrt() {
  return std::string("install ") + kName + " " + std::to_string(NV_TENSORRT_MAJOR) + " and name its " + kFile +
         " by the option tensorrt_library or by R1V_TENSORRT";
}

LibrarySearch tensorrt_search() {
  const std::string soname = std::string(kFile) + "." + std::to_string(NV_TENSORRT_MAJOR);
  return {kName, kFile, "R1V_TENSORRT", {soname}, install_tensorrt()};
}

int call(const SharedLibrary& opened, const char* function) {
  return reinterpret_cast<int32_t (*)()>(opened.function(function))();
}

}  // namespace

void Logger::log(Severity severity, nvinfer1::AsciiChar const* message) noexcept {
  if (severity > Severity::kERROR) return;
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (errors_.size() < kMostErrorBytes)
      errors_ += (errors_.empty() ? "" : "; ") + std::string(message).substr(0, 600);
  } catch (...) {  // Memory that there is not: this message is lost.
  }
}

std::string Logger::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(errors_, "");
}

Library::Library(const std::string& path) {
  const SharedLibrary opened = open_library(tensorrt_search(), path);
  const int major = call(opened, "getInferLibMajorVersion"), minor = call(opened, "getInferLibMinorVersion");
  version_ = std::to_string(major) + "." + std::to_string(minor) + "." +
             std::to_string(call(opened, "getInferLibPatchVersion")) + "." +
             std::to_string(call(opened, "getInferLibBuildVersion"));
  if (major != NV_TENSORRT_MAJOR || minor < NV_TENSORRT_MINOR) {
    throw Error(Code::kCapability, "This libr1v is compiled for another version of the library.",
                {opened.path,
                 std::string(kName) + " " + std::to_string(NV_TENSORRT_MAJOR) + "." +
                     std::to_string(NV_TENSORRT_MINOR) + ", or a later " + std::to_string(NV_TENSORRT_MAJOR),
                 version_, "compile libr1v with the headers of this version, or install the other one"});
  }
  const auto create = reinterpret_cast<void* (*)(void*, int32_t)>(opened.function("createInferRuntime_INTERNAL"));
  nvinfer1::ILogger* logger = logger_.get();
  runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(logger, NV_TENSORRT_VERSION)));
  if (runtime_ == nullptr) {
    throw Error(Code::kCapability, std::string(kName) + " cannot be set up.",
                {opened.path, "a CUDA GPU and its driver", errors(),
                 "use a machine with such a GPU and its driver, or a bundle with the target onnxruntime"});
  }
}

std::unique_ptr<nvinfer1::ICudaEngine> Library::deserialize(const void* plan, size_t bytes) const {
  logger_->take();
  return std::unique_ptr<nvinfer1::ICudaEngine>(runtime_->deserializeCudaEngine(plan, bytes));
}

std::string Library::errors() const {
  const std::string errors = logger_->take();
  return description() + (errors.empty() ? "" : ": " + errors);
}

}  // namespace r1v::trt
