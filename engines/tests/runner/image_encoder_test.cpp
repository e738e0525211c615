#include "runner/image_encoder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "tests/runner/fake_engine.h"

namespace r1v {
namespace {

Tiling tiling() {
  Tiling tiling;
  tiling.tile_size = 4;
  tiling.grids = {{1, 1}, {3, 1}};
  tiling.max_tiles_per_image = 4;
  tiling.mean = {0, 0, 0};
  tiling.std = {1, 1, 1};
  return tiling;
}

Pixels plain(int width, int height, uint8_t value) {
  Pixels pixels(width, height);
  std::memset(pixels.row(0), value, pixels.count() * Pixels::kBytes);
  return pixels;
}

std::vector<Pixels> images(std::vector<std::pair<int, uint8_t>> widths_and_values) {
  std::vector<Pixels> list;
  for (const auto& [width, value] : widths_and_values) list.push_back(plain(width, 4, value));
  return list;
}

TEST(ImageEncoder, TilesOfSeveralImagesGoTogetherAndEqualImagesOnce) {
  FakeEngine engine;
  ImageEncoder encoder(engine, tiling(), 1);
  Timings timings;
  // Tiles: 4, 1, and none for what is there already.
  const auto encoded = encoder.encode(images({{12, 255}, {4, 51}, {12, 255}, {4, 0}}), &timings, [] { return false; });
  EXPECT_EQ(engine.runs, (std::vector<int64_t>{4, 2}));
  ASSERT_EQ(encoded.size(), 4u);
  EXPECT_EQ(*encoded[0].embeds, std::vector<float>(16, 1.0f));
  EXPECT_EQ(*encoded[1].embeds, std::vector<float>(4, 51.0f / 255));
  EXPECT_EQ(encoded[2].embeds, encoded[0].embeds);
  EXPECT_EQ(*encoded[3].embeds, std::vector<float>(4, 0.0f));
}

TEST(ImageEncoder, AnImageThatIsShownAgainIsNotEncodedAgain) {
  FakeEngine engine;
  ImageEncoder encoder(engine, tiling(), 1, 1 << 20);
  Timings timings;
  const auto never = [] { return false; };
  const auto first = encoder.encode(images({{12, 255}, {4, 51}}), &timings, never);
  const auto second = encoder.encode(images({{4, 51}, {4, 7}}), &timings, never);
  EXPECT_EQ(engine.runs, (std::vector<int64_t>{4, 1, 1}));
  EXPECT_EQ(second[0].embeds, first[1].embeds);
  EXPECT_EQ(*second[1].embeds, std::vector<float>(4, 7.0f / 255));
  EXPECT_EQ(encoder.cache().hits(), 1);
}

TEST(ImageEncoder, KeepsNoMoreThanItMay) {
  FakeEngine engine;
  ImageEncoder encoder(engine, tiling(), 1, 2 * 4 * sizeof(float));  // two images of one tile
  Timings timings;
  const auto never = [] { return false; };
  for (const uint8_t shown : {1, 2, 1, 3, 1, 2}) encoder.encode(images({{4, shown}}), &timings, never);
  EXPECT_EQ(encoder.cache().hits(), 2);  // 1 and 1: 2 had to make room for 3
}

TEST(ImageEncoder, StopsBetweenRuns) {
  FakeEngine engine;
  int asked = 0;
  Timings timings;
  const auto encoded =
      ImageEncoder(engine, tiling(), 1).encode(images({{12, 1}, {12, 2}}), &timings, [&] { return ++asked > 1; });
  EXPECT_TRUE(encoded.empty());
  EXPECT_EQ(engine.runs.size(), 1u);
}

TEST(ImageEncoder, NumbersThatAreNotFiniteNameTheirStage) {
  FakeEngine engine;
  engine.broken = std::nanf("");
  Timings timings;
  try {
    ImageEncoder(engine, tiling(), 1).encode(images({{4, 1}}), &timings, [] { return false; });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kGraph);
    EXPECT_NE(std::string(error.what()).find("projector"), std::string::npos);
  }
}

}  // namespace
}  // namespace r1v
