// The inner loops of the resize. Each is compiled twice, for any processor and for AVX2, and chosen when it runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace r1v {

struct ResizeKernels {
  // One row across: `pixels` of four bytes to three rows of `target` bytes. `weights` holds for each target sample and
  // each pair of pixels 8 numbers: the weight of the first pixel four times, then that of the second.
  void (*across)(const uint8_t* pixels, const int* first, const int* weights, int pairs, int target, uint8_t* red,
                 uint8_t* green, uint8_t* blue);
  // One row down: `count` bytes of each of `taps` rows, weighted, to `out`, which may be written up to 32 bytes
  // further, as the rows may be read.
  void (*down)(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out);
  // Bytes to (value / 255 - mean) / std, in float32 as numpy computes it.
  void (*normalize)(const uint8_t* bytes, int count, float mean, float std, float* out);
};

const ResizeKernels& resize_kernels();

// Those for any processor, to be compared with.
const ResizeKernels& portable_resize_kernels();

inline constexpr int kWeightBits = 22;

}  // namespace r1v
