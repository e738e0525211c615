#include "backends/tensorrt/open.h"

#include "backends/tensorrt/engine.h"

namespace r1v::trt {

bool compiled_for(const std::string& target) { return target == kTarget; }

std::unique_ptr<Engine> open(const Bundle& bundle, const std::string& target, const EngineOptions& options) {
  if (!compiled_for(target)) {
    throw Error(Code::kCapability, "This libr1v is compiled for the other one of TensorRT and TensorRT-RTX.",
                {bundle.folder.string(), target, kTarget,
                 "compile libr1v with the headers of the other: -DR1V_TENSORRT_INCLUDE=FOLDER"});
  }
  if (options.device != "cuda") {
    throw Error(Code::kUsage, "TensorRT engines run on a CUDA GPU.",
                {bundle.folder.string(), "device cuda", options.device, ""});
  }
  return std::make_unique<TensorRtEngine>(bundle, options.tensorrt_library, options.gpu);
}

std::unique_ptr<VisionEngine> open_vision(const Bundle& bundle, const std::string& target,
                                          const EngineOptions& options) {
  if (!compiled_for(target) || options.device != "cuda") return nullptr;
  try {
    return std::make_unique<TensorRtVision>(bundle, options.tensorrt_library, options.gpu);
  } catch (const PlanMismatch&) {
    return nullptr;
  } catch (const Error& error) {
    if (error.code() == Code::kCapability) return nullptr;
    throw;
  }
}

}  // namespace r1v::trt
