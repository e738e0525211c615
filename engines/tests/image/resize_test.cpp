#include "image/resize.h"

#include <gtest/gtest.h>

#include <random>

#include "image/resize_kernels.h"
#include "image/tiles.h"

namespace r1v {
namespace {

Pixels noise(int width, int height) {
  std::mt19937 random(7);
  Pixels image(width, height);
  for (size_t i = 0; i < image.count() * Pixels::kBytes; ++i) image.row(0)[i] = static_cast<uint8_t>(random());
  return image;
}

TEST(Resize, ToTheSameSizeCopies) {
  const Pixels image = noise(37, 11);
  const ResizeAxis across(37, 37), down(11, 11);
  BandResizer(image, across, down).resize(0, 11, [&](int y, const PlanarRow& row) {
    for (int x = 0; x < 37; ++x) {
      for (size_t channel = 0; channel < 3; ++channel) EXPECT_EQ(row.channels[channel][x], image.at(x, y)[channel]);
    }
  });
}

TEST(Resize, OfOneColorKeepsIt) {
  Pixels image(5, 3);
  for (size_t i = 0; i < image.count(); ++i) std::memcpy(image.row(0) + 4 * i, "\x10\x80\xff\x00", 4);
  for (const int size : {1, 2, 64}) {
    const ResizeAxis across(5, size), down(3, size);
    BandResizer(image, across, down).resize(0, size, [&](int, const PlanarRow& row) {
      for (int x = 0; x < size; ++x) {
        EXPECT_EQ(row.channels[0][x], 0x10);
        EXPECT_EQ(row.channels[1][x], 0x80);
        EXPECT_EQ(row.channels[2][x], 0xff);
      }
    });
  }
}

TEST(Resize, OfEveryAxisReadsInsideOfTheSource) {
  for (int source : {1, 2, 3, 4, 5, 6, 7, 9, 100, 65535}) {
    for (int target : {1, 2, 7, 448, 5376}) {
      const ResizeAxis axis(source, target);
      EXPECT_EQ(axis.taps % 2, 0);
      for (int i = 0; i < target; ++i) {
        const size_t at = static_cast<size_t>(i);
        ASSERT_GE(axis.first[at], 0);
        ASSERT_LE(axis.first[at] + axis.taps, std::max(source + 1, axis.taps));
        int64_t sum = 0;
        for (size_t k = 0; k < static_cast<size_t>(axis.taps); ++k) {
          const int weight = axis.weights[at * static_cast<size_t>(axis.taps) + k];
          const bool is_inside = axis.first[at] + static_cast<int>(k) < source;
          ASSERT_TRUE(is_inside || weight == 0);
          sum += weight;
        }
        ASSERT_NEAR(static_cast<double>(sum), 1 << kWeightBits, axis.taps);
      }
    }
  }
}

TEST(Resize, WithAvx2IsThatOfAnyProcessor) {
  const ResizeKernels &fast = resize_kernels(), &any = portable_resize_kernels();
  const Pixels image = noise(301, 9);
  for (int target : {1, 448, 77}) {
    const ResizeAxis across(301, target), down(9, 4);
    std::vector<int> pairs;
    for (const int weight : across.weights) pairs.insert(pairs.end(), 4, weight);
    const size_t size = static_cast<size_t>(target);
    std::vector<uint8_t> rows[2];
    for (int i = 0; i < 2; ++i) {
      rows[i].resize(3 * size + 64);
      (i == 0 ? fast : any)
          .across(image.row(3), across.first.data(), pairs.data(), across.taps / 2, target, rows[i].data(),
                  rows[i].data() + size, rows[i].data() + 2 * size);
    }
    EXPECT_EQ(rows[0], rows[1]);
    std::vector<const uint8_t*> sources(static_cast<size_t>(down.taps), rows[0].data());
    std::vector<uint8_t> out[2] = {std::vector<uint8_t>(size + 64), std::vector<uint8_t>(size + 64)};
    fast.down(sources.data(), down.weights.data(), down.taps, target, out[0].data());
    any.down(sources.data(), down.weights.data(), down.taps, target, out[1].data());
    EXPECT_EQ(out[0], out[1]);
    std::vector<float> values[2] = {std::vector<float>(size), std::vector<float>(size)};
    fast.normalize(rows[0].data(), target, 0.485f, 0.229f, values[0].data());
    any.normalize(rows[0].data(), target, 0.485f, 0.229f, values[1].data());
    EXPECT_EQ(values[0], values[1]);
  }
}

TEST(Resize, OfAnyNumberOfThreadsIsTheSame) {
  Tiling tiling;
  tiling.tile_size = 29;
  tiling.grids = {{1, 1}, {2, 3}, {3, 2}};
  tiling.mean = {0.485f, 0.456f, 0.406f};
  tiling.std = {0.229f, 0.224f, 0.225f};
  const Pixels image = noise(60, 91);
  const std::vector<float> expected = pixel_values(image, tiling, 1);
  EXPECT_EQ(expected.size(), size_t{7} * 3 * 29 * 29);
  for (int threads : {0, 2, 5, 1000}) EXPECT_EQ(pixel_values(image, tiling, threads), expected);
}

}  // namespace
}  // namespace r1v
