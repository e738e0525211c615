#include "backends/tensorrt/embedding_table.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>

#include "backends/open_engine.h"
#include "base/error.h"
#include "tests/error_message.h"
#include "tests/tensorrt/plan_bundle.h"

namespace r1v::trt {
namespace {

std::vector<float> look_up(const EmbeddingTable& table, const std::vector<int64_t>& ids,
                           const std::vector<float>& images) {
  std::vector<float> embeds(ids.size() * 2);
  table.look_up(ids.data(), static_cast<int64_t>(ids.size()), images.data(), static_cast<int64_t>(images.size() / 2),
                embeds.data());
  return embeds;
}

TEST(EmbeddingTable, GivesRowsOfTheTableAndOfTheImages) {
  const PlanBundle made;
  const EmbeddingTable table(made.bundle);
  EXPECT_EQ(look_up(table, {3, 39}, {}), (std::vector<float>{3, 3, 39, 39}));
  // The third image token has no row of an image; rows are rounded to the table's type.
  EXPECT_EQ(look_up(table, {0, 5, 0, 0}, {7, 8, 9, 1.0f / 3}),
            (std::vector<float>{7, 8, 5, 5, 9, 0.333251953125f, 0, 0}));
  EXPECT_NE(error_message([&] { look_up(table, {40}, {}); }).find("0 to 39"), std::string::npos);
  EXPECT_NE(error_message([&] { look_up(table, {-1}, {}); }).find("-1"), std::string::npos);
}

// The bundle of R1V_BUNDLE, in ONNX Runtime: tests/engines runs this.
TEST(EmbeddingTable, GivesWhatOnnxRuntimeGives) {
  const char* path = std::getenv("R1V_BUNDLE");
  if (path == nullptr) GTEST_SKIP() << "R1V_BUNDLE is not set: tests/engines runs this test";
  const Bundle bundle = open_bundle(path);
  const auto engine = open_engine(bundle, {});
  const int64_t image = bundle.pipeline.image_token_id, vocab = bundle.contract.sizes.vocab;
  const auto hidden = static_cast<size_t>(bundle.contract.sizes.hidden);
  const std::vector<int64_t> ids = {0, image, vocab - 1, image, 7, image};
  std::vector<float> images(2 * hidden), expected(ids.size() * hidden), found(expected.size());
  for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<float>(i) / 7;
  engine->embed(ids.data(), 2, 3, images.data(), 2, expected.data());
  EmbeddingTable(bundle).look_up(ids.data(), 6, images.data(), 2, found.data());
  EXPECT_EQ(found, expected);
}

TEST(EmbeddingTable, MayBeOfAnyFloatingPointType) {
  PlanBundle made;
  std::string floats, bfloats;
  for (int i = 0; i < 80; ++i) {
    const float value = 1.0f + static_cast<float>(i) / 128;
    const uint16_t rounded = float_to_bfloat16(value);
    floats.append(reinterpret_cast<const char*>(&value), sizeof value);
    bfloats.append(reinterpret_cast<const char*>(&rounded), sizeof rounded);
  }
  for (const auto& [type, content] : {std::pair(1u, floats), std::pair(16u, bfloats)}) {
    made.add("graphs/embed.onnx", embed_model(made.bundle.contract.sizes, type, 0));
    made.write("graphs/embed.data", content);
    const float exact = 1.0f + 39.0f / 64;  // also in bfloat16
    EXPECT_EQ(look_up(EmbeddingTable(made.bundle), {39}, {})[0], exact);
  }
}

TEST(EmbeddingTable, MalformedGraphsAreRefused) {
  PlanBundle made;
  const Sizes& sizes = made.bundle.contract.sizes;
  const std::string sound = embed_model(sizes, 10, 4);
  for (size_t length = 0; length < sound.size(); ++length) {
    made.add("graphs/embed.onnx", sound.substr(0, length));
    EXPECT_THROW(EmbeddingTable(made.bundle), Error) << length;
  }
  std::string elsewhere = sound;
  elsewhere.replace(elsewhere.find("embed.data"), 10, "../bedding");
  Sizes wider = sizes;
  wider.hidden = 3;
  for (const std::string& wrong : {elsewhere, embed_model(wider, 10, 4), embed_model(sizes, 2, 4),
                                   embed_model(sizes, 10, 5), embed_model(sizes, 10, ~0ull)}) {
    made.add("graphs/embed.onnx", wrong);
    EXPECT_NE(error_message([&] { EmbeddingTable(made.bundle); }).find("embeddings cannot be read"), std::string::npos);
  }
}

TEST(Numbers, OfBfloat16AreTheNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const auto value = static_cast<uint16_t>(bits);
    const float exact = bfloat16_to_float(value), next = bfloat16_to_float(static_cast<uint16_t>(bits + 1));
    ASSERT_EQ(float_to_bfloat16(exact), value);
    ASSERT_EQ(float_to_bfloat16(-exact), value | 0x8000);
    if (bits + 1 == 0x7f80) break;
    ASSERT_EQ(float_to_bfloat16(exact + (next - exact) / 2), bits + (bits & 1)) << bits;
  }
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::quiet_NaN()) & 0x7fff, 0x7fc0);
}

}  // namespace
}  // namespace r1v::trt
