// The major version of a library that stands in for libnvinfer: one is the headers', and one is not.
#include "tests/tensorrt/stand_in/controls.h"

extern "C" STAND_IN_API int32_t getInferLibMajorVersion() { return R1V_STAND_IN_MAJOR; }
