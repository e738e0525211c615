// ONNX Runtime itself, by R1V_ONNXRUNTIME, on the nano bundle of R1V_BUNDLE: tests/engines runs these.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "backends/onnxruntime/library.h"
#include "backends/open_engine.h"
#include "base/half.h"

namespace r1v {
namespace {

class OnnxRuntime : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* bundle = std::getenv("R1V_BUNDLE");
    if (bundle == nullptr) GTEST_SKIP() << "R1V_BUNDLE is not set: tests/engines runs this test";
    bundle_ = std::make_unique<const Bundle>(open_bundle(bundle));
    engine_ = open_engine(*bundle_, {});
  }

  std::vector<float> random_numbers(int64_t count) {
    std::vector<float> numbers(static_cast<size_t>(count));
    for (float& number : numbers) number = normal_(random_);
    return numbers;
  }

  // Logits after the last of `seq` tokens of one row.
  std::vector<float> append(Decoder& decoder, const float* embeds, int64_t seq, int64_t start, int64_t row) {
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < seq; ++i) positions.push_back(start + i);
    const int64_t length = start + seq, last = seq - 1;
    std::vector<float> logits(static_cast<size_t>(engine_->sizes().vocab));
    decoder.step({1, seq, 1, embeds, positions.data(), &start, &length, &last, row}, logits.data());
    return logits;
  }

  std::mt19937 random_{7};
  std::normal_distribution<float> normal_;
  std::unique_ptr<const Bundle> bundle_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(OnnxRuntime, FunctionsAreWhereTheTableSays) {
  const ort::Library& library = ort::Library::open();
  EXPECT_EQ(engine_->description(), "onnxruntime " + library.version() + ", CPUExecutionProvider");
  EXPECT_EQ(library.providers().back(), "CPUExecutionProvider");
  // An error has a message, and is freed.
  EXPECT_THROW(
      ort::tensor_on(library, ort::cpu_memory(library).get(), &random_, 1, {1000, 1000}, ElementType::kFloat32), Error);
}

// The row is the cache's own memory: it moves, is copied and grows without a change of what follows.
TEST_F(OnnxRuntime, ACachesRowsMoveAndGrow) {
  const int64_t hidden = engine_->sizes().hidden;
  const std::vector<float> tokens = random_numbers(6 * hidden), others = random_numbers(5 * hidden);
  const auto alone = engine_->decoder(1, 64);
  append(*alone, tokens.data(), 5, 0, 0);
  const std::vector<float> expected = append(*alone, tokens.data() + 5 * hidden, 1, 5, 0);

  const auto decoder = engine_->decoder(2, 64);
  append(*decoder, tokens.data(), 5, 0, 0);
  append(*decoder, others.data(), 5, 0, 1);
  decoder->swap_rows(0, 1, 5);
  decoder->resize(3, 128, {5, 5});
  decoder->copy_row(1, 2, 5);
  EXPECT_EQ(decoder->capacity(), 128);
  for (int64_t row : {1, 2}) EXPECT_EQ(append(*decoder, tokens.data() + 5 * hidden, 1, 5, row), expected);
}

TEST_F(OnnxRuntime, WrongStepsAreErrors) {
  const auto decoder = engine_->decoder(1, 64);
  const std::vector<float> token = random_numbers(engine_->sizes().hidden);
  EXPECT_THROW(append(*decoder, token.data(), 1, 0, 1), Error);
  EXPECT_EQ(append(*decoder, token.data(), 1, 0, 0).size(), static_cast<size_t>(engine_->sizes().vocab));
}

TEST_F(OnnxRuntime, AnUnknownOptionOfTheBundleIsRefused) {
  Bundle other = *bundle_;
  other.pipeline.engines.at("onnxruntime").options["new_rule"] = true;
  EXPECT_THROW(open_engine(other, {}), Error);
  other = *bundle_;
  other.pipeline.engines.at("onnxruntime").options["weights_root"] = "../../..";
  EXPECT_THROW(open_engine(other, {}), Error);
}

// Every float16 there is, and halves between two.
TEST(Half, RoundsToTheNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = half_to_float(half);
    ASSERT_EQ(float_to_half(value), half);
    ASSERT_EQ(float_to_half(-value), half | 0x8000);
    if (bits + 1 == 0x7c00) break;
    const float middle = (value + half_to_float(static_cast<uint16_t>(bits + 1))) / 2;
    ASSERT_EQ(float_to_half(middle), bits + (bits & 1)) << bits;
  }
  EXPECT_EQ(float_to_half(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(half_to_float(0x3c00), 1.0f);
  EXPECT_EQ(half_to_float(0x0001), 0x1p-24f);
}

}  // namespace
}  // namespace r1v
