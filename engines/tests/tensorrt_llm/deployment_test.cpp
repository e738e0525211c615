// An engine of TensorRT-LLM, and what encodes images next to it.
#include <gtest/gtest.h>

#include <cstdlib>

#include "backends/open_engine.h"
#include "tests/error_message.h"
#include "tests/tensorrt_llm/llm_bundle.h"

namespace r1v {
namespace {

class Deployments : public ::testing::Test {
 protected:
  void SetUp() override {
    ::setenv("R1V_TENSORRT_LLM_MODULE", (std::string(R1V_STAND_INS) + "/libr1v_tensorrt_llm.so").c_str(), 1);
    options_.engine = made_.engine().string();
    options_.tensorrt_llm_library = std::string(R1V_STAND_INS) + "/tensorrt-llm-1.2.0/libs";
  }
  void TearDown() override { ::unsetenv("R1V_TENSORRT_LLM_MODULE"); }

  // What opening says in the end: the bundle has no graphs, so that no test needs ONNX Runtime.
  std::string refusal() {
    return error_message([&] { open_deployment(made_.bundle, options_); });
  }

  LlmBundle made_;
  EngineOptions options_;
};

TEST_F(Deployments, WhoeverOpensOneIsToldWhyAPlanDoesNotEncodeItsImages) {
  made_.bundle.pipeline.engines["tensorrt"] = made_.bundle.pipeline.engines["tensorrt-rtx"] = {};
  std::vector<std::string> warnings;
  options_.warn = [&](const std::string& message) { warnings.push_back(message); };
  EXPECT_NE(refusal().find("nothing that encodes images"), std::string::npos);
  ASSERT_EQ(warnings.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const std::string begin = std::string("the plan of ") + (i == 0 ? "tensorrt" : "tensorrt-rtx") +
                              " does not run here, so another engine encodes images: ";
    EXPECT_EQ(warnings[i].rfind(begin, 0), 0u) << warnings[i];
    EXPECT_NE(warnings[i].find("fix:"), std::string::npos) << warnings[i];
  }
}

TEST_F(Deployments, NobodyHasToListen) {
  made_.bundle.pipeline.engines["tensorrt"] = {};
  EXPECT_NE(refusal().find("nothing that encodes images"), std::string::npos);
}

TEST_F(Deployments, ABundleWithoutPlansGivesNoWarning) {
  options_.warn = [](const std::string& message) { ADD_FAILURE() << message; };
  EXPECT_NE(refusal().find("nothing that encodes images"), std::string::npos);
}

}  // namespace
}  // namespace r1v
