#include "backends/onnxruntime/images.h"

#include <gtest/gtest.h>

#include "base/sha256.h"
#include "bundle/contract.h"
#include "tests/error_message.h"
#include "tests/temporary_folder.h"

namespace r1v::ort {
namespace {

constexpr char kPair[] = "onnxruntime with images by onnxruntime in int8", kExact[] = "engines/onnxruntime/vision.onnx";
#if defined(__x86_64__)
constexpr bool kIsX86 = true;
#else
constexpr bool kIsX86 = false;
#endif

class ChooseImages : public ::testing::Test {
 protected:
  ChooseImages() {
    bundle_.folder = folder_.path();
    for (const char* graph : {contract::kVision, contract::kProjector}) {
      const std::string file = std::string("engines/onnxruntime/images/onnxruntime/") + graph + ".onnx";
      folder_.write(file, "");  // a model without weights
      bundle_.manifest.files[file] = {Sha256().hex(), 0};
      own_.graphs[graph] = {std::string("engines/onnxruntime/") + graph + ".onnx", folder_.path(), "entry", {}, 0};
    }
  }

  ImageGraphs chosen(Device device, const std::string& asked) {
    warned_.clear();
    return choose_images(bundle_, "onnxruntime", own_, {device, 1, 3}, asked,
                         [this](const std::string& message) { warned_ += message; });
  }

  bool is_exact(Device device, const std::string& asked) {
    const ImageGraphs graphs = chosen(device, asked);
    return graphs.products.empty() && graphs.options.graphs.at(contract::kVision).file == kExact &&
           graphs.device.device == device;
  }

  TemporaryFolder folder_;
  Bundle bundle_{};
  Options own_{{}, 256};
  std::string warned_;
};

TEST_F(ChooseImages, WhatPassedIsTakenOnACpuAlone) {
  bundle_.manifest.image_parity[kPair] = "passed";
  EXPECT_EQ(is_exact(Device::kCpu, "auto"), !kIsX86);
  EXPECT_EQ(is_exact(Device::kCpu, ""), !kIsX86);
  for (const Device device : {Device::kCuda, Device::kTensorRt}) {
    EXPECT_TRUE(is_exact(device, "auto"));
    EXPECT_EQ(chosen(device, "auto").note, "");
  }
  EXPECT_TRUE(is_exact(Device::kCpu, "onnxruntime"));
}

TEST_F(ChooseImages, WhatDidNotPassIsTakenWhereItIsAskedForWithAWarning) {
  for (const char* verdict : {"", "its gate failed at vision"}) {
    if (*verdict != '\0') bundle_.manifest.image_parity[kPair] = verdict;
    EXPECT_TRUE(is_exact(Device::kCpu, "auto"));
    const std::string reason = *verdict != '\0' ? verdict : "no gate has compared it";
    EXPECT_NE(chosen(Device::kCpu, "auto").note.find("is here, but " + reason), std::string::npos);
    EXPECT_EQ(warned_, "");
    EXPECT_EQ(chosen(Device::kCpu, "onnxruntime-int8").products, "int8");
    EXPECT_NE(warned_.find("not compared with PyTorch (" + reason + ")"), std::string::npos) << warned_;
  }
}

TEST_F(ChooseImages, AVerdictThatSaysNothingIsNone) {
  bundle_.manifest.image_parity[kPair] = "";
  EXPECT_TRUE(is_exact(Device::kCpu, "auto"));
  EXPECT_NE(chosen(Device::kCpu, "auto").note.find("no gate has compared it"), std::string::npos);
}

TEST_F(ChooseImages, ThePartRunsOnTheCpuWhateverTheEngineDoes) {
  bundle_.manifest.image_parity[kPair] = "passed";
  const ImageGraphs graphs = chosen(Device::kCuda, "onnxruntime-int8");
  EXPECT_EQ(graphs.products, "int8 on the CPU");
  EXPECT_EQ(graphs.device.device, Device::kCpu);
  EXPECT_EQ(graphs.device.threads, 3);
  EXPECT_EQ(warned_, "");
  const GraphOptions& vision = graphs.options.graphs.at(contract::kVision);
  EXPECT_EQ(vision.file, "engines/onnxruntime/images/onnxruntime/vision.onnx");
  EXPECT_EQ(vision.weights_root, folder_.path());
  EXPECT_EQ(graphs.options.image_tokens_per_run, 256);
}

TEST_F(ChooseImages, ABundleWithoutThePartSaysNothingAndRefusesItsName) {
  bundle_.manifest.files.clear();
  EXPECT_TRUE(is_exact(Device::kCpu, "auto"));
  EXPECT_EQ(chosen(Device::kCpu, "auto").note, "");
  for (const char* asked : {"onnxruntime-int8", "openvino"}) {
    const std::string message = error_message([&] { chosen(Device::kCpu, asked); });
    EXPECT_NE(message.find("--precision int4"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace r1v::ort
