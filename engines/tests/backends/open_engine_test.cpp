#include "backends/open_engine.h"

#include <gtest/gtest.h>

#include "backends/tensorrt/open.h"
#include "tests/error_message.h"

namespace r1v {
namespace {

std::string refusal(const std::vector<std::string>& targets, const std::string& asked = "") {
  Bundle bundle{};
  bundle.folder = "bundle";
  for (const std::string& target : targets) bundle.pipeline.engines[target] = {};
  EngineOptions options;
  options.target = asked;
  return error_message([&] { open_engine(bundle, options); });
}

TEST(OpenEngine, ATargetThatTheBundleDoesNotHaveIsNamedWithThoseItHas) {
  EXPECT_NE(refusal({"gguf", "tensorrt"}, "onnxruntime").find("gguf, tensorrt"), std::string::npos);
  EXPECT_NE(refusal({}).find("no engine"), std::string::npos);
}

TEST(OpenEngine, ATargetThatLibr1vDoesNotRunIsNamedWithThoseItRuns) {
  EXPECT_NE(refusal({"gguf"}).find("onnxruntime, tensorrt, tensorrt-rtx or tensorrt-llm"), std::string::npos);
  EXPECT_NE(refusal({"gguf", "onnxruntime"}, "gguf").find("gguf"), std::string::npos);
}

TEST(OpenEngine, TensorRtLlmTakesAnEngineThatIsNotInTheBundle) {
  EXPECT_NE(refusal({"tensorrt-llm"}).find("--engine"), std::string::npos);
  EXPECT_NE(refusal({"tensorrt-llm", "onnxruntime"}, "tensorrt-llm").find("--engine"), std::string::npos);
}

TEST(OpenEngine, AnEngineIsForItsTargetAndChoosesItsGpus) {
  Bundle bundle{};
  EngineOptions options;
  options.engine = "engine";
  options.target = "onnxruntime";
  EXPECT_NE(error_message([&] { open_deployment(bundle, options); }).find("not for this target"), std::string::npos);
  options.target = "tensorrt-llm";
  EXPECT_NE(error_message([&] { open_deployment(bundle, options); }).find("no checkpoint"), std::string::npos);
  options.gpu = 1;
  EXPECT_NE(error_message([&] { open_deployment(bundle, options); }).find("CUDA_VISIBLE_DEVICES"), std::string::npos);
}

TEST(OpenEngine, OnlyOnnxRuntimeHasOtherGraphsThatEncodeImages) {
  Bundle bundle{};
  EngineOptions options;
  options.vision_target = "onnxruntime-int8";
  const std::string of_library = error_message([&] { open_deployment(bundle, options); });
  EXPECT_NE(of_library.find("Only an engine of ONNX Runtime"), std::string::npos) << of_library;
  for (const char* target : {"tensorrt", "tensorrt-rtx"}) {
    bundle.pipeline.engines = {{target, {}}};
    const std::string message = error_message([&] { open_engine(bundle, options); });
    EXPECT_NE(message.find("Only an engine of ONNX Runtime"), std::string::npos) << message;
  }
}

TEST(OpenEngine, PlansAreRefusedWithTheVariablesThatCompileTheirEngineIn) {
  for (const char* target : {"tensorrt", "tensorrt-rtx"}) {
    if (trt::compiled_for(target)) continue;  // The other one is refused all the same.
    const std::string message = refusal({target});
    EXPECT_NE(message.find("-DR1V_TENSORRT_INCLUDE"), std::string::npos) << message;
    EXPECT_NE(message.find(target), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace r1v
