#include "backends/tensorrt/open.h"

#include <optional>

#include "backends/tensorrt/engine.h"

namespace r1v::trt {
namespace {

// Why no plan of this target can be opened so; nothing where one may be.
std::optional<Error> refusal(const Bundle& bundle, const std::string& target, const EngineOptions& options) {
  if (!compiled_for(target)) {
    return Error(Code::kCapability, "This libr1v is compiled for the other one of TensorRT and TensorRT-RTX.",
                 {bundle.folder.string(), target, kTarget,
                  "compile libr1v with the headers of the other: -DR1V_TENSORRT_INCLUDE=FOLDER"});
  }
  if (options.device != "cuda") {
    return Error(Code::kUsage, "TensorRT engines run on a CUDA GPU.",
                 {bundle.folder.string(), "device cuda", options.device,
                  "open the bundle on that device: --device cuda, r1v_engine_options.device"});
  }
  return std::nullopt;
}

}  // namespace

bool compiled_for(const std::string& target) { return target == kTarget; }

std::unique_ptr<Engine> open(const Bundle& bundle, const std::string& target, const EngineOptions& options) {
  if (const std::optional<Error> error = refusal(bundle, target, options)) throw *error;
  return std::make_unique<TensorRtEngine>(bundle, options.tensorrt_library, options.gpu);
}

std::unique_ptr<VisionEngine> open_vision(const Bundle& bundle, const std::string& target, const EngineOptions& options,
                                          std::string* reason) {
  if (const std::optional<Error> error = refusal(bundle, target, options)) {
    *reason = error->what();
    return nullptr;
  }
  try {
    return std::make_unique<TensorRtVision>(bundle, options.tensorrt_library, options.gpu);
  } catch (const PlanMismatch& mismatch) {
    *reason = mismatch.what();
  } catch (const Error& error) {
    if (error.code() != Code::kCapability) throw;
    *reason = error.what();
  }
  return nullptr;
}

}  // namespace r1v::trt
