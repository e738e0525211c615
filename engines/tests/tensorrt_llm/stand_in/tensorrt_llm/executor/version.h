// After TensorRT-LLM's header of this name.
#pragma once

namespace tensorrt_llm::executor {

static auto constexpr kTensorRtLlmVersion = "1.2.0";

}  // namespace tensorrt_llm::executor
