#include "image/resize_kernels.h"

#include <algorithm>

namespace r1v {
namespace {

// The sum was begun with one half. A right shift of a negative number rounds down, as everywhere that gcc and clang
// run.
uint8_t clip(int sum) { return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

std::vector<int> pack(const std::vector<int>& weights, int) { return weights; }

void across_row(const uint8_t* pixels, const int* first, const int* packed, int taps, int target, uint8_t* red,
                uint8_t* green, uint8_t* blue) {
  for (int x = 0; x < target; ++x) {
    const uint8_t* pixel = pixels + 4 * static_cast<size_t>(first[x]);
    int sums[3] = {kHalf, kHalf, kHalf};
    for (int tap = 0; tap < taps; ++tap, pixel += 4, ++packed) {
      for (int channel = 0; channel < 3; ++channel) sums[channel] += pixel[channel] * *packed;
    }
    red[x] = clip(sums[0]);
    green[x] = clip(sums[1]);
    blue[x] = clip(sums[2]);
  }
}

void across(const SourceRows& source, const int* first, const int* packed, int taps, int target,
            const TargetRows& out) {
  for (int y = 0; y < source.count; ++y) {
    across_row(source.pixels + source.stride * static_cast<size_t>(y), first, packed, taps, target, out.row(y, 0),
               out.row(y, 1), out.row(y, 2));
  }
}

void down(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out) {
  constexpr int kBlock = 32;
  for (int x = 0; x < count; x += kBlock) {
    int sums[kBlock];
    std::fill_n(sums, kBlock, kHalf);
    for (int tap = 0; tap < taps; ++tap) {
      const uint8_t* row = rows[tap] + x;
      for (int i = 0; i < kBlock; ++i) sums[i] += row[i] * weights[tap];
    }
    for (int i = 0; i < kBlock; ++i) out[x + i] = clip(sums[i]);
  }
}

void normalize(const uint8_t* bytes, int count, float mean, float std, float* out) {
  for (int x = 0; x < count; ++x) out[x] = (static_cast<float>(bytes[x]) / 255.0f - mean) / std;
}

constexpr ResizeKernels kPortable = {pack, across, down, normalize};

}  // namespace

const ResizeKernels& portable_resize_kernels() { return kPortable; }

const ResizeKernels& resize_kernels() {
  static const ResizeKernels& chosen = avx512_resize_kernels() != nullptr ? *avx512_resize_kernels()
                                       : avx2_resize_kernels() != nullptr ? *avx2_resize_kernels()
                                                                          : kPortable;
  return chosen;
}

}  // namespace r1v
