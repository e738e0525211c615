#include "image/resize_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if !defined(__clang__)
// GCC 12 takes the undefined vectors of its own header for a mistake (its bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define R1V_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

namespace r1v {
namespace {

// A weight of 24 bits is three signed digits of 8 bits, whose products with bytes one instruction sums four at a time.
// The sums may pass 32 bits on the way, and are exact in the end, as the whole fits.
constexpr int kDigits = 3, kDigitBits = 8;

// Half a digit more, cut to whole digits: what is left of a weight when its lowest digit is taken.
constexpr int rest(int weight) { return (weight + 128) >> kDigitBits; }

// Taps that a target sample is made of at a time: four groups of four.
constexpr int kStep = 16;

int steps_of(int taps) { return (taps + kStep - 1) / kStep; }

// For each target sample and each step of its taps 3 x 16 numbers: of each digit the four groups of taps, each of which
// is one number of 32 bits, four times, for the four channels. Behind the last tap, weights are zero.
std::vector<int> pack_avx512(const std::vector<int>& weights, int taps) {
  const size_t per_sample = static_cast<size_t>(taps), steps = static_cast<size_t>(steps_of(taps));
  const size_t samples = weights.size() / per_sample;
  std::vector<int> packed(samples * steps * kDigits * kStep);
  for (size_t sample = 0; sample < samples; ++sample) {
    for (size_t tap = 0; tap < per_sample; ++tap) {
      int weight = weights[sample * per_sample + tap];
      int* step = packed.data() + (sample * steps + tap / kStep) * kDigits * kStep;
      for (int digit = 0; digit < kDigits; ++digit, weight = rest(weight)) {
        const auto shifted = static_cast<int>((static_cast<unsigned>(weight) & 255u) << (8 * (tap % 4)));
        for (size_t channel = 0; channel < 4; ++channel) {
          step[kStep * digit + static_cast<int>(4 * (tap % kStep / 4) + channel)] |= shifted;
        }
      }
    }
  }
  return packed;
}

R1V_AVX512 inline __m512i joined(const __m512i* digits) {
  const __m512i upper = _mm512_add_epi32(digits[1], _mm512_slli_epi32(digits[2], kDigitBits));
  return _mm512_add_epi32(digits[0], _mm512_slli_epi32(upper, kDigitBits));
}

R1V_AVX512 inline __m512i to_samples(__m512i sums) {
  return _mm512_srai_epi32(_mm512_add_epi32(sums, _mm512_set1_epi32(kHalf)), kWeightBits);
}

// Sixteen pixels or fewer, the bytes of each channel of four pixels next to each other; zero where `mask` has no bit.
R1V_AVX512 inline __m512i load_pixels(const uint8_t* pixels, __mmask16 mask) {
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(_mm512_maskz_loadu_epi32(mask, pixels), order);
}

R1V_AVX512 inline __m512i add_products(__m512i sum, __m512i samples, const int* packed) {
  return _mm512_dpbusd_epi32(sum, samples, _mm512_loadu_si512(packed));
}

// The weighted sums of four groups of taps of one target sample: red, green, blue and what is not used. `last`: which
// pixels of the last step there are. With few steps, which shrinking up to eleven times takes, the pixels stay in
// registers.
template <int kSteps>
R1V_AVX512 inline __m512i weigh(const uint8_t* pixels, const int* packed, int, __mmask16 last) {
  __m512i samples[kSteps];
  for (int step = 0; step < kSteps; ++step) {
    const auto mask = step + 1 < kSteps ? static_cast<__mmask16>(0xffff) : last;
    samples[step] = load_pixels(pixels + 4 * kStep * step, mask);
  }
  __m512i sum = _mm512_setzero_si512();
  for (int digit = kDigits - 1; digit >= 0; --digit) {
    if (digit < kDigits - 1) sum = _mm512_slli_epi32(sum, kDigitBits);
    for (int step = 0; step < kSteps; ++step) {
      sum = add_products(sum, samples[step], packed + kStep * (kDigits * step + digit));
    }
  }
  return sum;
}

template <>
R1V_AVX512 inline __m512i weigh<0>(const uint8_t* pixels, const int* packed, int steps, __mmask16 last) {
  __m512i digits[kDigits] = {};
  for (int step = 0; step < steps; ++step, pixels += 4 * kStep, packed += kDigits * kStep) {
    const __m512i samples = load_pixels(pixels, step + 1 < steps ? static_cast<__mmask16>(0xffff) : last);
    for (int digit = 0; digit < kDigits; ++digit) {
      digits[digit] = add_products(digits[digit], samples, packed + kStep * digit);
    }
  }
  return joined(digits);
}

// Of two vectors, the lower half and the upper half added up.
R1V_AVX512 inline __m512i add_halves(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
}

// The sums of groups of four target samples, added up: four numbers for each.
R1V_AVX512 inline __m512i add_groups(const __m512i* four) {
  const __m512i first = add_halves(four[0], four[1]), second = add_halves(four[2], four[3]);
  return _mm512_add_epi32(_mm512_shuffle_i32x4(first, second, 0x88), _mm512_shuffle_i32x4(first, second, 0xdd));
}

// `kSteps`: of each target sample; 0 for any number.
template <int kSteps>
R1V_AVX512 void across_steps(const SourceRows& source, const int* first, const int* packed, int taps, int target,
                             const TargetRows& out) {
  const int steps = steps_of(taps);
  const auto last = static_cast<__mmask16>((1 << (taps - (steps - 1) * kStep)) - 1);
  const ptrdiff_t per_sample = ptrdiff_t{kDigits} * kStep * steps;
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int x = 0; x < target; x += 4) {
    const int count = target - x < 4 ? target - x : 4;
    const auto mask = static_cast<__mmask16>((1 << count) - 1);
    for (int y = 0; y < source.count; ++y) {
      const uint8_t* row = source.pixels + source.stride * static_cast<size_t>(y);
      __m512i four[4];
      for (int i = 0; i < 4; ++i) {
        const int at = x + i < target ? x + i : target - 1;
        four[i] = weigh<kSteps>(row + 4 * static_cast<size_t>(first[at]), packed + per_sample * at, steps, last);
      }
      const __m512i samples = _mm512_max_epi32(to_samples(add_groups(four)), _mm512_setzero_si512());
      const __m128i planes = _mm_shuffle_epi8(_mm512_cvtusepi32_epi8(samples), order);
      _mm_mask_storeu_epi8(out.row(y, 0) + x, mask, planes);
      _mm_mask_storeu_epi8(out.row(y, 1) + x, mask, _mm_srli_si128(planes, 4));
      _mm_mask_storeu_epi8(out.row(y, 2) + x, mask, _mm_srli_si128(planes, 8));
    }
  }
}

void across_avx512(const SourceRows& source, const int* first, const int* packed, int taps, int target,
                   const TargetRows& out) {
  switch (steps_of(taps)) {
    case 1: return across_steps<1>(source, first, packed, taps, target, out);
    case 2: return across_steps<2>(source, first, packed, taps, target, out);
    case 3: return across_steps<3>(source, first, packed, taps, target, out);
    default: return across_steps<0>(source, first, packed, taps, target, out);
  }
}

// The digits of the weights of four taps, each digit in all numbers of a vector.
R1V_AVX512 inline void load_digits(const int* weights, __m512i* digits) {
  const __m128i lowest = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights));
  for (int digit = 0; digit < kDigits; ++digit) {
    digits[digit] = _mm512_broadcastd_epi32(_mm_shuffle_epi8(four, lowest));
    four = _mm_srai_epi32(_mm_add_epi32(four, _mm_set1_epi32(128)), kDigitBits);
  }
}

R1V_AVX512 void down_avx512(const uint8_t* const* rows, const int* weights, int taps, int count, uint8_t* out) {
  constexpr int kColumns = 64;
  for (int x = 0; x < count; x += kColumns) {
    const int left = count - x;
    const __mmask64 mask = left >= kColumns ? ~0ull : (1ull << left) - 1;
    __m512i sums[4][kDigits] = {};  // of each fourth of the columns
    for (int tap = 0; tap < taps; tap += 4) {
      __m512i lines[4], digits[kDigits];
      for (int i = 0; i < 4; ++i) lines[i] = _mm512_maskz_loadu_epi8(mask, rows[tap + i] + x);
      load_digits(weights + tap, digits);
      // The bytes of four rows next to each other. Within each 16 columns; packing below undoes it.
      const __m512i upper_lo = _mm512_unpacklo_epi8(lines[0], lines[1]);
      const __m512i upper_hi = _mm512_unpackhi_epi8(lines[0], lines[1]);
      const __m512i lower_lo = _mm512_unpacklo_epi8(lines[2], lines[3]);
      const __m512i lower_hi = _mm512_unpackhi_epi8(lines[2], lines[3]);
      const __m512i samples[4] = {_mm512_unpacklo_epi16(upper_lo, lower_lo), _mm512_unpackhi_epi16(upper_lo, lower_lo),
                                  _mm512_unpacklo_epi16(upper_hi, lower_hi), _mm512_unpackhi_epi16(upper_hi, lower_hi)};
      for (int part = 0; part < 4; ++part) {
        for (int digit = 0; digit < kDigits; ++digit) {
          sums[part][digit] = _mm512_dpbusd_epi32(sums[part][digit], samples[part], digits[digit]);
        }
      }
    }
    __m512i parts[4];
    for (int part = 0; part < 4; ++part) parts[part] = to_samples(joined(sums[part]));
    // Packing clips to 0 and 255.
    const __m512i words_0 = _mm512_packs_epi32(parts[0], parts[1]), words_1 = _mm512_packs_epi32(parts[2], parts[3]);
    _mm512_mask_storeu_epi8(out + x, mask, _mm512_packus_epi16(words_0, words_1));
  }
}

}  // namespace

const ResizeKernels* avx512_resize_kernels() {
  static const bool available = avx2_resize_kernels() != nullptr && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (!available) return nullptr;
  // Dividing is as fast in vectors half as wide.
  static const ResizeKernels kernels = {pack_avx512, across_avx512, down_avx512, avx2_resize_kernels()->normalize};
  return &kernels;
}

}  // namespace r1v

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#else

namespace r1v {

const ResizeKernels* avx512_resize_kernels() { return nullptr; }

}  // namespace r1v

#endif
