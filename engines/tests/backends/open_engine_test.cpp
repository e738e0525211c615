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
  for (const char* target : {"tensorrt-llm", "gguf"}) {
    EXPECT_NE(refusal({target}).find("onnxruntime, tensorrt or tensorrt-rtx"), std::string::npos);
    EXPECT_NE(refusal({target, "onnxruntime"}, target).find(target), std::string::npos);
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
