#include "image/resize_kernels.h"

#include <cstring>

#if defined(__x86_64__)
#define R1V_AVX2 __attribute__((target("avx2")))
#endif
#define R1V_INLINE inline __attribute__((always_inline))

namespace r1v {
namespace {

// GCC's and clang's vectors, of any length on any processor.
typedef int Ints8 __attribute__((vector_size(32)));
typedef uint8_t Bytes8 __attribute__((vector_size(8)));
typedef float Floats8 __attribute__((vector_size(32)));

constexpr int kHalf = 1 << (kWeightBits - 1);

R1V_INLINE void load(const uint8_t* bytes, Ints8* ints) {
  Bytes8 loaded;
  std::memcpy(&loaded, bytes, sizeof loaded);
  *ints = __builtin_convertvector(loaded, Ints8);
}

R1V_INLINE void clip(Ints8* sums) {
  *sums >>= kWeightBits;
  *sums &= *sums > 0;
  const Ints8 most = Ints8{} + 255, above = *sums > most;
  *sums = (*sums & ~above) | (most & above);
}

R1V_INLINE uint8_t clip(int sum) {
  const int value = sum >> kWeightBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

template <int fixed_pairs>
R1V_INLINE void across_pairs(const uint8_t* pixels, const int* first, const int* weights, int some_pairs, int target,
                             uint8_t* red, uint8_t* green, uint8_t* blue) {
  const int pairs = fixed_pairs > 0 ? fixed_pairs : some_pairs;
  for (int x = 0; x < target; ++x) {
    const uint8_t* source = pixels + 4 * static_cast<size_t>(first[x]);
    Ints8 sums{};
    for (int pair = 0; pair < pairs; ++pair, source += 8, weights += 8) {
      Ints8 samples, weight;
      load(source, &samples);
      std::memcpy(&weight, weights, sizeof weight);
      sums += samples * weight;
    }
    red[x] = clip(sums[0] + sums[4] + kHalf);
    green[x] = clip(sums[1] + sums[5] + kHalf);
    blue[x] = clip(sums[2] + sums[6] + kHalf);
  }
}

// Enlarging takes 4 or 5 pixels, and so up to 3 pairs.
R1V_INLINE void across_row(const uint8_t* pixels, const int* first, const int* weights, int pairs, int target,
                           uint8_t* red, uint8_t* green, uint8_t* blue) {
  if (pairs == 3) return across_pairs<3>(pixels, first, weights, pairs, target, red, green, blue);
  across_pairs<0>(pixels, first, weights, pairs, target, red, green, blue);
}

R1V_INLINE void down_row(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out) {
  for (int x = 0; x < count; x += 32) {
    Ints8 sums[4];
    for (Ints8& sum : sums) sum = Ints8{} + kHalf;
    for (int tap = 0; tap < taps; ++tap) {
      for (int part = 0; part < 4; ++part) {
        Ints8 samples;
        load(rows[tap] + x + 8 * part, &samples);
        sums[part] += samples * weights[tap];
      }
    }
    for (int part = 0; part < 4; ++part) {
      clip(&sums[part]);
      const Bytes8 bytes = __builtin_convertvector(sums[part], Bytes8);
      std::memcpy(out + x + 8 * part, &bytes, sizeof bytes);
    }
  }
}

R1V_INLINE void normalize_row(const uint8_t* bytes, int count, float mean, float std, float* out) {
  int x = 0;
  for (; x + 8 <= count; x += 8) {
    Ints8 samples;
    load(bytes + x, &samples);
    Floats8 values = __builtin_convertvector(samples, Floats8);
    values = (values / 255.0f - mean) / std;
    std::memcpy(out + x, &values, sizeof values);
  }
  for (; x < count; ++x) out[x] = (static_cast<float>(bytes[x]) / 255.0f - mean) / std;
}

void across_any(const uint8_t* pixels, const int* first, const int* weights, int pairs, int target, uint8_t* red,
                uint8_t* green, uint8_t* blue) {
  across_row(pixels, first, weights, pairs, target, red, green, blue);
}
void down_any(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out) {
  down_row(rows, weights, taps, count, out);
}
void normalize_any(const uint8_t* bytes, int count, float mean, float std, float* out) {
  normalize_row(bytes, count, mean, std, out);
}
constexpr ResizeKernels kPortable = {across_any, down_any, normalize_any};

#if defined(R1V_AVX2)
R1V_AVX2 void across_avx2(const uint8_t* pixels, const int* first, const int* weights, int pairs, int target,
                          uint8_t* red, uint8_t* green, uint8_t* blue) {
  across_row(pixels, first, weights, pairs, target, red, green, blue);
}
R1V_AVX2 void down_avx2(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out) {
  down_row(rows, weights, taps, count, out);
}
R1V_AVX2 void normalize_avx2(const uint8_t* bytes, int count, float mean, float std, float* out) {
  normalize_row(bytes, count, mean, std, out);
}
constexpr ResizeKernels kAvx2 = {across_avx2, down_avx2, normalize_avx2};
#endif

}  // namespace

const ResizeKernels& portable_resize_kernels() { return kPortable; }

const ResizeKernels& resize_kernels() {
#if defined(R1V_AVX2)
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return kAvx2;
#endif
  return kPortable;
}

}  // namespace r1v
