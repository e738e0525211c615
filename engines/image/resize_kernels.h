// The inner loops of the resize: for any processor, and with AVX2 or AVX-512 where there is one. Which is decided when
// it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace r1v {

inline constexpr int kWeightBits = 22;
inline constexpr int kHalf = 1 << (kWeightBits - 1);

// Some rows of pixels of four bytes; `stride` bytes from one to the next.
struct SourceRows {
  const uint8_t* pixels;
  size_t stride;
  int count;
};

// Three rows of bytes for each row of the source; `stride` bytes from one to the next.
struct TargetRows {
  uint8_t* bytes;
  size_t stride;
  uint8_t* row(int source, size_t channel) const {
    return bytes + (3 * static_cast<size_t>(source) + channel) * stride;
  }
};

struct ResizeKernels {
  // Weights of `across` in the order in which it reads them, from `taps` (a multiple of 4) for each target sample.
  std::vector<int> (*pack)(const std::vector<int>& weights, int taps);
  // Rows across: each of `rows` becomes three of `target` bytes, red, green and blue, one behind the other in `out`.
  // Target sample x is made of `taps` pixels from first[x] on. Several rows at a time, because the weights do not stay
  // in the nearest cache from one row to the next.
  void (*across)(const SourceRows& source, const int* first, const int* packed, int taps, int target,
                 const TargetRows& out);
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
// The same of AVX-512 with VNNI.
const ResizeKernels* avx512_resize_kernels();

}  // namespace r1v
