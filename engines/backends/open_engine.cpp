#include "backends/open_engine.h"

#include "backends/onnxruntime/engine.h"

namespace r1v {
namespace {

constexpr char kOnnxRuntime[] = "onnxruntime";

std::string targets_of(const Bundle& bundle) {
  std::string names;
  for (const auto& [target, engine] : bundle.pipeline.engines) names += (names.empty() ? "" : ", ") + target;
  return names.empty() ? "no engine" : names;
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
  const bool has = bundle.pipeline.engines.count(options.target.empty() ? kOnnxRuntime : options.target) > 0;
  if (!has && !options.target.empty()) {
    throw Error(
        Code::kBundle, "The bundle has no engine of this target.",
        {bundle.folder.string(), options.target, targets_of(bundle), "build it with --target " + options.target});
  }
  if (!has || (!options.target.empty() && options.target != kOnnxRuntime)) {
    throw Error(Code::kCapability, "This libr1v has no engine of this target compiled in.",
                {bundle.folder.string(), kOnnxRuntime, options.target.empty() ? targets_of(bundle) : options.target,
                 "use a bundle with the target onnxruntime"});
  }
  return std::make_unique<ort::OnnxRuntimeEngine>(bundle, kOnnxRuntime, options.onnxruntime_library,
                                                  device_of(options));
}

}  // namespace r1v
