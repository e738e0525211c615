#include <tensorrt_llm/executor/executor.h>

namespace tensorrt_llm::executor {

char const* version() noexcept { return R1V_STAND_IN_VERSION; }

}  // namespace tensorrt_llm::executor
