#include "backends/open_engine.h"

#include "backends/onnxruntime/engine.h"
#include "backends/tensorrt/open.h"
#include "backends/tensorrt_llm/executor.h"

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
    throw Error(Code::kUsage, "There is no such device.",
                {"device", "cpu, cuda or tensorrt", options.device, "name one of these"});
  }
  return device;
}

// What encodes the bundle's images, as the Python package chooses it (r1v_export/targets/vision.py).
std::unique_ptr<VisionEngine> open_vision(const Bundle& bundle, const EngineOptions& options) {
  for (const char* plans : {kTensorRt, kTensorRtRtx}) {
    if (bundle.pipeline.engines.count(plans) == 0) continue;
    std::string reason;
    if (std::unique_ptr<VisionEngine> vision = trt::open_vision(bundle, plans, options, &reason)) return vision;
    // What comes next computes the same.
    if (options.warn) {
      options.warn(std::string("the plan of ") + plans +
                   " does not run here, so another engine encodes images: " + reason);
    }
  }
  const ort::DeviceOptions device = device_of(options);
  const bool lowered = bundle.pipeline.engines.count(kOnnxRuntime) > 0;
  // What a bundle lacks is said before what the machine does.
  const ort::Options graphs =
      lowered ? ort::parse_options(bundle, kOnnxRuntime) : ort::standard_vision_options(bundle);
  return std::make_unique<ort::OnnxRuntimeVision>(bundle, ort::Library::open(options.onnxruntime_library),
                                                  ort::ImageGraphs{graphs, device, "", ""});
}

// Has a GPU's memory taken by what encodes images, before a library takes all that is left.
void load(VisionEngine* vision) {
  const Sizes& size = vision->sizes();
  const std::vector<float> pixels(static_cast<size_t>(3 * size.tile_size * size.tile_size));
  vision->projector(vision->vision(pixels.data(), 1), 1);
}

// Throws kUsage: something is to encode images for an engine that has no choice of it.
void require_no_vision_target(const EngineOptions& options, const std::string& target) {
  if (ort::is_auto(options.vision_target) || options.vision_target == target) return;
  throw Error(Code::kUsage, "Only an engine of ONNX Runtime has graphs to choose from that encode images.",
              {"--vision-target, r1v_engine_options.vision_target", "auto", options.vision_target,
               "omit it, or answer with the target onnxruntime"});
}

void require_deployable(const EngineOptions& options) {
  require_no_vision_target(options, "");
  if (!options.target.empty() && options.target != trtllm::kTarget) {
    throw Error(Code::kUsage, "An engine of TensorRT-LLM is not for this target.",
                {"engine", trtllm::kTarget, options.target, "omit the target or the engine"});
  }
  if (options.gpu != 0) {
    throw Error(Code::kUsage, "TensorRT-LLM chooses its GPUs itself.",
                {"gpu", "0", std::to_string(options.gpu), "let the process see only these GPUs: CUDA_VISIBLE_DEVICES"});
  }
}

}  // namespace

Deployment open_deployment(const Bundle& bundle, const EngineOptions& options) {
  require_deployable(options);
  const trtllm::EngineConfig config = trtllm::read_engine_config(bundle, options.engine);
  const trtllm::Library library(options.tensorrt_llm_library);
  std::unique_ptr<VisionEngine> vision = open_vision(bundle, options);
  if (options.device != "cpu") load(vision.get());
  auto generator = std::make_unique<trtllm::ExecutorGenerator>(library, config, options.engine,
                                                               bundle.pipeline.image_token_id, options.reuse_prefixes);
  return {std::move(vision), std::move(generator)};
}

std::unique_ptr<Engine> open_engine(const Bundle& bundle, const EngineOptions& options) {
  const std::string target = target_of(bundle, options.target);
  if (target == kOnnxRuntime) {
    return std::make_unique<ort::OnnxRuntimeEngine>(bundle, target, options.onnxruntime_library, device_of(options),
                                                    options.vision_target, options.warn);
  }
  if (target == kTensorRt || target == kTensorRtRtx) require_no_vision_target(options, target);
  if (target == kTensorRt || target == kTensorRtRtx) return trt::open(bundle, target, options);
  if (target == trtllm::kTarget) {
    throw Error(Code::kUsage, "TensorRT-LLM decodes with an engine, which is not in the bundle.",
                {bundle.folder.string(), "the folder of an engine", "none",
                 "build one with r1v-export engine and name its folder: --engine, r1v_engine_options.engine"});
  }
  throw Error(Code::kCapability, "libr1v does not run engines of this target.",
              {bundle.folder.string(),
               std::string(kOnnxRuntime) + ", " + kTensorRt + ", " + kTensorRtRtx + " or " + trtllm::kTarget, target,
               "answer with r1v-export run, or build the bundle with one of these targets too"});
}

}  // namespace r1v
