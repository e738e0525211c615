// Stands in for libnvinfer_plugin_tensorrt_llm.
#include <cstring>

#include "tests/tensorrt_llm/stand_in/controls.h"

extern "C" STAND_IN_API bool initTrtLlmPlugins(void*, const char* library_namespace) {
  const std::lock_guard<std::mutex> lock(r1v::stand_in::controls().mutex);
  r1v::stand_in::controls().plugins = std::strcmp(library_namespace, "tensorrt_llm") == 0;
  return true;
}
