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

std::vector<ImageJobPointer> open(ImageEncoder* encoder,
                                  const std::vector<std::pair<int, uint8_t>>& widths_and_values) {
  std::vector<ImageJobPointer> jobs;
  for (Pixels& image : images(widths_and_values)) jobs.push_back(encoder->open(std::move(image)));
  return jobs;
}

std::vector<ImageJobPointer> encode(ImageEncoder* encoder,
                                    const std::vector<std::pair<int, uint8_t>>& widths_and_values) {
  const std::vector<ImageJobPointer> jobs = open(encoder, widths_and_values);
  while (encoder->waiting() > 0) encoder->run_batch();
  return jobs;
}

TEST(ImageEncoder, TilesOfSeveralImagesGoTogetherAndEqualImagesOnce) {
  FakeEngine engine;
  ImageEncoder encoder(engine, tiling(), 1);
  // Tiles: 4, 1, and none for what is there already.
  const auto jobs = encode(&encoder, {{12, 255}, {4, 51}, {12, 255}, {4, 0}});
  EXPECT_EQ(engine.runs, (std::vector<int64_t>{4, 2}));
  EXPECT_EQ(encoder.runs(), 2);
  EXPECT_EQ(encoder.tiles(), 6);
  EXPECT_EQ(*jobs[0]->image.embeds, std::vector<float>(16, 1.0f));
  EXPECT_EQ(*jobs[1]->image.embeds, std::vector<float>(4, 51.0f / 255));
  EXPECT_EQ(jobs[2], jobs[0]);
  EXPECT_EQ(*jobs[3]->image.embeds, std::vector<float>(4, 0.0f));
  EXPECT_EQ(encoder.hits(), 1);
  EXPECT_EQ(encoder.misses(), 3);
}

TEST(ImageEncoder, AnImageThatIsShownAgainIsNotEncodedAgain) {
  FakeEngine engine;
  ImageEncoder encoder(engine, tiling(), 1, 1 << 20);
  const auto first = encode(&encoder, {{12, 255}, {4, 51}});
  const auto second = encode(&encoder, {{4, 51}, {4, 7}});
  EXPECT_EQ(engine.runs, (std::vector<int64_t>{4, 1, 1}));
  EXPECT_EQ(second[0]->image.embeds, first[1]->image.embeds);
  EXPECT_EQ(*second[1]->image.embeds, std::vector<float>(4, 7.0f / 255));
  EXPECT_EQ(encoder.hits(), 1);
  EXPECT_EQ(encoder.cache().bytes(), static_cast<int64_t>((16 + 4 + 4) * sizeof(float)));
}

TEST(ImageEncoder, KeepsNoMoreThanItMay) {
  FakeEngine engine;
  ImageEncoder encoder(engine, tiling(), 1, 2 * 4 * sizeof(float));  // two images of one tile
  for (const uint8_t shown : {1, 2, 1, 3, 1, 2}) encode(&encoder, {{4, shown}});
  EXPECT_EQ(encoder.hits(), 2);  // 1 and 1: 2 had to make room for 3
}

TEST(ImageEncoder, AnImageThatIsGivenUpIsEncodedForThoseWhoStillWantIt) {
  FakeEngine engine;
  ImageEncoder encoder(engine, tiling(), 1);
  const auto first = open(&encoder, {{12, 1}, {12, 2}}), second = open(&encoder, {{12, 2}, {4, 3}});
  encoder.run_batch();
  encoder.abandon(first);
  EXPECT_EQ(encoder.waiting(), 5);
  encoder.abandon({second[1]});
  encoder.run_batch();
  EXPECT_EQ(engine.runs, (std::vector<int64_t>{4, 4}));
  EXPECT_EQ(*second[0]->image.embeds, std::vector<float>(16, 2.0f / 255));
  EXPECT_EQ(encoder.waiting(), 0);
}

TEST(ImageEncoder, NumbersThatAreNotFiniteNameTheirStageAndAreTheirImagesOwn) {
  FakeEngine engine;
  engine.broken_above = 0.5f;
  ImageEncoder encoder(engine, tiling(), 1, 1 << 20);
  const auto jobs = encode(&encoder, {{4, 10}, {4, 200}, {4, 20}});
  EXPECT_EQ(engine.runs, (std::vector<int64_t>{3}));
  EXPECT_EQ(*jobs[0]->image.embeds, std::vector<float>(4, 10.0f / 255));
  EXPECT_EQ(*jobs[2]->image.embeds, std::vector<float>(4, 20.0f / 255));
  ASSERT_TRUE(jobs[1]->error);
  try {
    std::rethrow_exception(jobs[1]->error);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kGraph);
    EXPECT_NE(std::string(error.what()).find("projector"), std::string::npos);
  }
  engine.broken_above = 2;
  EXPECT_TRUE(encode(&encoder, {{4, 200}})[0]->image.embeds) << "an image that failed is kept";
}

TEST(ImageEncoder, AnImageThatCannotBeCutFailsAlone) {
  FakeEngine engine;
  Tiling small = tiling();
  small.limits.max_pixels = 16;
  ImageEncoder encoder(engine, small, 1);
  const auto jobs = encode(&encoder, {{4, 1}, {12, 2}, {4, 3}});
  EXPECT_TRUE(jobs[0]->image.embeds && jobs[2]->image.embeds);
  EXPECT_TRUE(jobs[1]->error);
  EXPECT_EQ(engine.runs, (std::vector<int64_t>{2}));
}

}  // namespace
}  // namespace r1v
