// Which graphs encode the images of an engine's questions: its own, or those in 8 bits that it has besides.
#pragma once

#include <functional>
#include <string>

#include "backends/onnxruntime/options.h"
#include "backends/onnxruntime/session.h"

namespace r1v::ort {

struct ImageGraphs {
  Options options;  // of the graphs `vision` and `projector`
  DeviceOptions device;
  std::string products;  // what they multiply, in words; empty for the engine's own graphs
  std::string note;      // what people should know of the choice, in a line; empty if nothing
};

// Whether the fastest that a gate has compared with PyTorch, and that runs here, is to encode images.
bool is_auto(const std::string& vision_target);

// As the Python package chooses (r1v_export/targets/images.py), of what ONNX Runtime runs.
// `own`: options of the engine's own graphs, on `device`. `vision_target`: auto, the target, or `onnxruntime-int8`.
// `warn` gets what was asked for without a gate having compared it; may be empty.
// Throws kUsage: the bundle has nothing of that name. kBundle: a graph is missing or altered.
ImageGraphs choose_images(const Bundle& bundle, const std::string& target, const Options& own,
                          const DeviceOptions& device, const std::string& vision_target,
                          const std::function<void(const std::string&)>& warn);

}  // namespace r1v::ort
