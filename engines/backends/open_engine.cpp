#include "backends/open_engine.h"

#include "backends/onnxruntime/engine.h"
#include "backends/tensorrt/open.h"

namespace r1v {
namespace {

constexpr char kOnnxRuntime[] = "onnxruntime", kTensorRt[] = "tensorrt", kTensorRtRtx[] = "tensorrt-rtx";

std::string targets_of(const Bundle& bundle) {
  std::string names;
  for (const auto& [target, engine] : bundle.pipeline.engines) names += (names.empty() ? "" : ", ") + target;
  return names.empty() ? "no engine" : names;
}

// The target whose engine is opened: the one that is asked for, else the first that this libr1v can run.
std::string target_of(const Bundle& bundle, const std::string& asked) {
  const auto& engines = bundle.pipeline.engines;
  if (!asked.empty()) {
    if (engines.count(asked) > 0) return asked;
    throw Error(Code::kBundle, "The bundle has no engine of this target.",
                {bundle.folder.string(), asked, targets_of(bundle), "build it with --target " + asked});
  }
  for (const char* each : {kOnnxRuntime, kTensorRt, kTensorRtRtx}) {
    if (engines.count(each) > 0 && (each == kOnnxRuntime || trt::compiled_for(each))) return each;
  }
  return engines.empty() ? targets_of(bundle) : engines.begin()->first;
}

ort::DeviceOptions device_of(const EngineOptions& options) {
  ort::DeviceOptions device{ort::Device::kCpu, options.gpu, options.threads};
  if (options.device == "cuda") {
    device.device = ort::Device::kCuda;
  } else if (options.device == "tensorrt") {
    device.device = ort::Device::kTensorRt;
  } else if (options.device != "cpu") {
    throw Error(Code::kUsage, "There is no such device.", {"device", "cpu, cuda or tensorrt", options.device, ""});
  }
  return device;
}

}  // namespace

std::unique_ptr<Engine> open_engine(const Bundle& bundle, const EngineOptions& options) {
  const std::string target = target_of(bundle, options.target);
  if (target == kOnnxRuntime) {
    return std::make_unique<ort::OnnxRuntimeEngine>(bundle, target, options.onnxruntime_library, device_of(options));
  }
  if (target == kTensorRt || target == kTensorRtRtx) return trt::open(bundle, target, options);
  throw Error(Code::kCapability, "libr1v does not run engines of this target.",
              {bundle.folder.string(), std::string(kOnnxRuntime) + ", " + kTensorRt + " or " + kTensorRtRtx, target,
               "answer with r1v-export run, or build the bundle with one of these targets too"});
}

}  // namespace r1v
