// The engine of a bundle, by its target; or the library that decodes with an engine next to it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "backends/engine.h"
#include "backends/generator.h"
#include "bundle/bundle.h"

namespace r1v {

struct EngineOptions {
  std::string target;               // of the bundle; empty for the first that this libr1v can run
  std::string device = "cpu";       // cpu, cuda or tensorrt: what runs the graphs; plans of TensorRT run on cuda
  std::string vision_target;        // what encodes images for an engine of ONNX Runtime, see ort::choose_images
  int gpu = 0;                      // which one of several
  int threads = 0;                  // that one operator may use on the CPU; 0 for all that this process may use
  std::string onnxruntime_library;  // path of ONNX Runtime's library, or of its folder; see ort::Library::open
  std::string tensorrt_library;     // path of TensorRT's library, or of its folder; see trt::Library
  std::string
      engine;  // folder of `r1v-export engine`, with which TensorRT-LLM decodes; empty for an engine of the bundle
  std::string tensorrt_llm_library;  // path of TensorRT-LLM's library, or of its folder; see trtllm::Library
  bool reuse_prefixes = true;        // TensorRT-LLM may compute prompts that begin alike once
  std::function<void(const std::string&)> warn;  // gets what of the bundle cannot be used, and why; may be empty
};

// `bundle` must outlive the engine. Throws kUsage: an unknown device, one that the target does not run on, or a vision
// target that it does not have;
// kCapability: the target is not compiled in, or the library or the device is not here; kBundle: the bundle has no such
// target, or its engine is refused.
std::unique_ptr<Engine> open_engine(const Bundle& bundle, const EngineOptions& options);

// A bundle's language model in a library's hands, and what encodes the bundle's images next to it.
struct Deployment {
  std::unique_ptr<VisionEngine> vision;
  std::unique_ptr<Generator> generator;
};

// The same where `options.engine` names an engine, which TensorRT-LLM decodes with. Images are encoded by a plan of the
// bundle that runs here, else by ONNX Runtime; `options.warn` gets the reason where a plan does not.
Deployment open_deployment(const Bundle& bundle, const EngineOptions& options);

}  // namespace r1v
