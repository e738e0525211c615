// TensorRT's or TensorRT-RTX's shared library, opened at run time. Which of the two, the headers say that this is
// compiled with: both have the same classes under the same names, laid out differently.
#pragma once

#include <NvInfer.h>

#include <memory>
#include <mutex>
#include <string>

namespace r1v::trt {

#ifdef TRT_MAJOR_RTX
inline constexpr char kTarget[] = "tensorrt-rtx";
#else
inline constexpr char kTarget[] = "tensorrt";
#endif

// Keeps the library's latest error, for ours.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override;
  // The errors since the last time.
  std::string take();

 private:
  std::mutex mutex_;
  std::string errors_;
};

// Any number of threads may use it.
class Library {
 public:
  // `path` is the library or its folder; where it is empty, R1V_TENSORRT of the environment is taken, else what the
  // loader finds. Throws kCapability: there is none, or it is not of the version that this is compiled for.
  explicit Library(const std::string& path);

  // As "10.13.3.9".
  const std::string& version() const { return version_; }
  // Target and version.
  std::string description() const { return std::string(kTarget) + " " + version_; }

  // Null where the library refuses the plan; `errors` says why.
  std::unique_ptr<nvinfer1::ICudaEngine> deserialize(const void* plan, size_t bytes) const;
  // What the library said of its latest failure, and its version.
  std::string errors() const;

 private:
  std::string version_;
  const std::unique_ptr<Logger> logger_ = std::make_unique<Logger>();
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

}  // namespace r1v::trt
