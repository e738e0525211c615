#include "image/resize_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#define R1V_AVX2 __attribute__((target("avx2")))

namespace r1v {
namespace {

// 8 bytes as 8 numbers of 32 bits.
R1V_AVX2 inline __m256i load_bytes(const uint8_t* bytes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}

// A weight of 24 bits is an upper and a lower part of 16 each, whose products with bytes are summed in pairs by one
// instruction. The sums may pass 32 bits on the way, and are exact in the end, as the whole fits.
constexpr int kLowerBits = 15;

// For each four taps 32 numbers of 16 bits: lower parts of taps 0 and 1 four times, of taps 2 and 3 four times, then
// the upper parts in the same way.
std::vector<int> pack_avx2(const std::vector<int>& weights, int taps) {
  (void)taps;
  std::vector<int> packed(weights.size() / 4 * 16);
  int16_t parts[2][4];
  for (size_t group = 0; group < weights.size() / 4; ++group) {
    for (size_t tap = 0; tap < 4; ++tap) {
      const int weight = weights[4 * group + tap];
      parts[0][tap] = static_cast<int16_t>(weight & ((1 << kLowerBits) - 1));
      parts[1][tap] = static_cast<int16_t>(weight >> kLowerBits);
    }
    for (size_t i = 0; i < 16; ++i) std::memcpy(&packed[16 * group + i], &parts[i / 8][i / 4 % 2 * 2], 4);
  }
  return packed;
}

R1V_AVX2 inline __m256i load_ints(const int* ints) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ints));
}

// The weighted sum of the pixels of one target sample: red, green, blue and what is not used, as whole numbers.
R1V_AVX2 inline __m128i weigh(const uint8_t* pixels, const int* packed, int groups) {
  // Of four pixels, each channel of the first two, and of the last two, next to each other and in 16 bits.
  const __m256i order = _mm256_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1, 8, -1, 12, -1, 9, -1,
                                         13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
  __m256i lower = _mm256_setzero_si256(), upper = lower;
  for (int group = 0; group < groups; ++group, pixels += 16, packed += 16) {
    const __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels)));
    const __m256i samples = _mm256_shuffle_epi8(four, order);
    lower = _mm256_add_epi32(lower, _mm256_madd_epi16(samples, load_ints(packed)));
    upper = _mm256_add_epi32(upper, _mm256_madd_epi16(samples, load_ints(packed + 8)));
  }
  const __m256i sums = _mm256_add_epi32(lower, _mm256_slli_epi32(upper, kLowerBits));
  const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kWeightBits);
}

// Four pixels of four numbers each to a row of four bytes for each channel. Packing clips to 0 and 255.
R1V_AVX2 inline void store_four(const __m128i* pixels, uint8_t* red, uint8_t* green, uint8_t* blue) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i words_0 = _mm_packs_epi32(pixels[0], pixels[1]), words_1 = _mm_packs_epi32(pixels[2], pixels[3]);
  const __m128i bytes = _mm_shuffle_epi8(_mm_packus_epi16(words_0, words_1), order);
  const int channels[3] = {_mm_cvtsi128_si32(bytes), _mm_extract_epi32(bytes, 1), _mm_extract_epi32(bytes, 2)};
  std::memcpy(red, &channels[0], 4);
  std::memcpy(green, &channels[1], 4);
  std::memcpy(blue, &channels[2], 4);
}

R1V_AVX2 inline void across_groups(const SourceRows& source, const int* first, const int* packed, int groups,
                                   int target, const TargetRows& out) {
  const ptrdiff_t step = 16 * static_cast<ptrdiff_t>(groups);
  for (int x = 0; x < target; x += 4, packed += 4 * step) {
    const int count = target - x < 4 ? target - x : 4;
    for (int y = 0; y < source.count; ++y) {
      const uint8_t* row = source.pixels + source.stride * static_cast<size_t>(y);
      __m128i four[4] = {};
      for (int i = 0; i < count; ++i) {
        four[i] = weigh(row + 4 * static_cast<size_t>(first[x + i]), packed + step * i, groups);
      }
      uint8_t *red = out.row(y, 0) + x, *green = out.row(y, 1) + x, *blue = out.row(y, 2) + x;
      if (count == 4) {
        store_four(four, red, green, blue);
        continue;
      }
      uint8_t rest[3][4];
      store_four(four, rest[0], rest[1], rest[2]);
      std::memcpy(red, rest[0], static_cast<size_t>(count));
      std::memcpy(green, rest[1], static_cast<size_t>(count));
      std::memcpy(blue, rest[2], static_cast<size_t>(count));
    }
  }
}

R1V_AVX2 void across_avx2(const SourceRows& source, const int* first, const int* packed, int taps, int target,
                          const TargetRows& out) {
  // Enlarging takes up to 8 taps: their loop is unrolled.
  if (taps == 8) return across_groups(source, first, packed, 2, target, out);
  across_groups(source, first, packed, taps / 4, target, out);
}

R1V_AVX2 void down_avx2(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out) {
  for (int x = 0; x < count; x += 32) {
    __m256i sums[4];
    for (__m256i& sum : sums) sum = _mm256_set1_epi32(kHalf);
    for (int tap = 0; tap < taps; ++tap) {
      const __m256i weight = _mm256_set1_epi32(weights[tap]);
      for (int part = 0; part < 4; ++part) {
        const __m256i product = _mm256_mullo_epi32(load_bytes(rows[tap] + x + 8 * part), weight);
        sums[part] = _mm256_add_epi32(sums[part], product);
      }
    }
    for (__m256i& sum : sums) sum = _mm256_srai_epi32(sum, kWeightBits);
    // Packing clips to 0 and 255, and works on halves of a vector apart: their order is restored.
    const __m256i words_0 = _mm256_packs_epi32(sums[0], sums[1]), words_1 = _mm256_packs_epi32(sums[2], sums[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words_0, words_1), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + x), bytes);
  }
}

R1V_AVX2 void normalize_avx2(const uint8_t* bytes, int count, float mean, float std, float* out) {
  const __m256 most = _mm256_set1_ps(255.0f), means = _mm256_set1_ps(mean), stds = _mm256_set1_ps(std);
  int x = 0;
  for (; x + 8 <= count; x += 8) {
    const __m256 scaled = _mm256_div_ps(_mm256_cvtepi32_ps(load_bytes(bytes + x)), most);
    _mm256_storeu_ps(out + x, _mm256_div_ps(_mm256_sub_ps(scaled, means), stds));
  }
  for (; x < count; ++x) out[x] = (static_cast<float>(bytes[x]) / 255.0f - mean) / std;
}

constexpr ResizeKernels kAvx2 = {pack_avx2, across_avx2, down_avx2, normalize_avx2};

}  // namespace

const ResizeKernels* avx2_resize_kernels() { return __builtin_cpu_supports("avx2") ? &kAvx2 : nullptr; }

}  // namespace r1v

#else

namespace r1v {

const ResizeKernels* avx2_resize_kernels() { return nullptr; }

}  // namespace r1v

#endif
