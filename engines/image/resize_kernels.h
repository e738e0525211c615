// The inner loops of the resize: for any processor, and with AVX2 where there is one. Which is decided when it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace r1v {

inline constexpr int kWeightBits = 22;
inline constexpr int kHalf = 1 << (kWeightBits - 1);

struct ResizeKernels {
  // Weights of `across` in the order in which it reads them, from `taps` (a multiple of 4) for each target sample.
  std::vector<int> (*pack)(const std::vector<int>& weights, int taps);
  // One row across: `pixels` of four bytes to three rows of `target` bytes. Target sample x is made of `taps` pixels
  // from first[x] on.
  void (*across)(const uint8_t* pixels, const int* first, const int* packed, int taps, int target, uint8_t* red,
                 uint8_t* green, uint8_t* blue);
  // One row down: `count` bytes of each of `taps` rows, weighted, to `out`. Up to 31 bytes more are read and written.
  void (*down)(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out);
  // Bytes to (value / 255 - mean) / std, in float32 as numpy computes it.
  void (*normalize)(const uint8_t* bytes, int count, float mean, float std, float* out);
};

// The fastest of this processor.
const ResizeKernels& resize_kernels();

const ResizeKernels& portable_resize_kernels();
// Null where the build or the processor has no AVX2.
const ResizeKernels* avx2_resize_kernels();

}  // namespace r1v
