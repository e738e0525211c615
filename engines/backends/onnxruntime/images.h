// What encodes the images of an engine's questions: its own graphs, or those in 8 bits that it has besides.
#pragma once

#include <string>

#include "backends/onnxruntime/options.h"
#include "backends/onnxruntime/session.h"

namespace r1v::ort {

// The fastest that a gate has compared with PyTorch and that runs here.
inline constexpr char kAuto[] = "auto";

struct ImageEncoder {
  Options options;  // of the graphs `vision` and `projector`
  DeviceOptions device;
  std::string products;  // what they multiply, in words; empty for the engine's own graphs
  std::string note;      // what people should know of it, in a line; empty if nothing
};

// As the Python package chooses (r1v_export/targets/images.py), of what ONNX Runtime runs.
// `own`: options of the engine's own graphs, on `device`. `asked`: kAuto, the target, or `onnxruntime-int8`.
// Throws kUsage: the bundle has nothing of that name. kBundle: what it has is not in its manifest.
ImageEncoder choose_images(const Bundle& bundle, const std::string& target, const Options& own,
                           const DeviceOptions& device, const std::string& asked);

}  // namespace r1v::ort
