// Engines of the targets tensorrt and tensorrt-rtx. Compiled with TensorRT's headers or without: see CMakeLists.txt.
#pragma once

#include <memory>

#include "backends/open_engine.h"

namespace r1v::trt {

// Whether `open` can be asked for this target's engine here.
bool compiled_for(const std::string& target);

// The engine of a bundle's target, one of the two. Throws kCapability: it is not compiled in, or the library or a GPU
// is not here; kBundle: its engine is refused; kUsage: the device is not "cuda".
std::unique_ptr<Engine> open(const Bundle& bundle, const std::string& target, const EngineOptions& options);

// The same of its plans that encode images. Null where they do not run here, and `reason` then says why: they are for
// another library, version or GPU than there is, the library cannot be loaded, or the device is not "cuda". Throws
// kBundle: a plan is damaged.
std::unique_ptr<VisionEngine> open_vision(const Bundle& bundle, const std::string& target, const EngineOptions& options,
                                          std::string* reason);

}  // namespace r1v::trt
