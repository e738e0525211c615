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
      EXPECT_EQ(axis.taps % 4, 0);
      for (int i = 0; i < target; ++i) {
        const size_t at = static_cast<size_t>(i);
        ASSERT_GE(axis.first[at], 0);
        ASSERT_LE(axis.first[at] + axis.taps, std::max(source, axis.taps));
        int64_t sum = 0;
        for (size_t k = 0; k < static_cast<size_t>(axis.taps); ++k) {
          const int weight = axis.weights[at * static_cast<size_t>(axis.taps) + k];
          ASSERT_LT(std::abs(weight), 127 << 16);  // three digits of 8 bits, as the kernels for AVX-512 take them
          const bool is_inside = axis.first[at] + static_cast<int>(k) < source;
          ASSERT_TRUE(is_inside || weight == 0);
          sum += weight;
        }
        ASSERT_NEAR(static_cast<double>(sum), 1 << kWeightBits, axis.taps);
      }
    }
  }
}

// Some rows across, those rows down, and their numbers.
std::vector<float> run(const ResizeKernels& kernels, const Pixels& image, int target) {
  const ResizeAxis across(image.width(), target), down(image.height(), 4);
  const size_t size = static_cast<size_t>(target), stride = size + 32;
  std::vector<uint8_t> rows(9 * stride), out(stride);
  kernels.across({image.row(3), image.stride(), 3}, across.first.data(),
                 kernels.pack(across.weights, across.taps).data(), across.taps, target, {rows.data(), stride});
  std::vector<const uint8_t*> taps;
  for (int tap = 0; tap < down.taps; ++tap) taps.push_back(rows.data() + static_cast<size_t>(tap % 9) * stride);
  kernels.down(taps.data(), down.weights.data(), down.taps, target, out.data());
  std::vector<float> values(size);
  kernels.normalize(out.data(), target, 0.485f, 0.229f, values.data());
  for (size_t row = 0; row < 9; ++row) {
    values.insert(values.end(), rows.begin() + static_cast<ptrdiff_t>(row * stride),
                  rows.begin() + static_cast<ptrdiff_t>(row * stride + size));
  }
  return values;
}

class ResizeOnThisProcessor : public testing::TestWithParam<const ResizeKernels*> {};

TEST_P(ResizeOnThisProcessor, IsThatOfAny) {
  if (GetParam() == nullptr) GTEST_SKIP() << "this processor has no such instructions";
  for (const int width : {1, 3, 17, 301, 4000}) {
    const Pixels image = noise(width, 9);
    for (const int target : {1, 2, 7, 77, 448}) {
      EXPECT_EQ(run(*GetParam(), image, target), run(portable_resize_kernels(), image, target)) << width;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Avx2, ResizeOnThisProcessor, testing::Values(avx2_resize_kernels()));
INSTANTIATE_TEST_SUITE_P(Avx512, ResizeOnThisProcessor, testing::Values(avx512_resize_kernels()));

TEST(Resize, OfAnyNumberOfThreadsIsTheSame) {
  Tiling tiling;
  tiling.tile_size = 29;
  tiling.grids = {{1, 1}, {2, 3}, {3, 2}};
  tiling.mean = {0.485f, 0.456f, 0.406f};
  tiling.std = {0.229f, 0.224f, 0.225f};
  const Pixels image = noise(60, 91);
  const PixelValues expected = pixel_values(image, tiling, 1);
  EXPECT_EQ(expected.count, size_t{7} * 3 * 29 * 29);
  for (int threads : {0, 2, 5, 1000}) {
    const PixelValues values = pixel_values(image, tiling, threads);
    EXPECT_TRUE(std::equal(values.values.get(), values.values.get() + expected.count, expected.values.get()));
  }
}

}  // namespace
}  // namespace r1v
