#include "backends/tensorrt/open.h"

namespace r1v::trt {
namespace {

Error refusal(const Bundle& bundle, const std::string& target) {
  return Error(Code::kCapability, "This libr1v was compiled without TensorRT.",
               {bundle.folder.string(), "NvInfer.h and cuda_runtime_api.h where libr1v is compiled", target,
                "compile libr1v with -DR1V_TENSORRT_INCLUDE=FOLDER and -DR1V_CUDA_INCLUDE=FOLDER, or use a bundle with "
                "the target onnxruntime"});
}

}  // namespace

bool compiled_for(const std::string&) { return false; }

std::unique_ptr<Engine> open(const Bundle& bundle, const std::string& target, const EngineOptions&) {
  throw refusal(bundle, target);
}

std::unique_ptr<VisionEngine> open_vision(const Bundle& bundle, const std::string& target, const EngineOptions&,
                                          std::string* reason) {
  *reason = refusal(bundle, target).what();
  return nullptr;
}

}  // namespace r1v::trt
