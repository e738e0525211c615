#include "image/png_filters.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace r1v {
namespace {

// From `start` on, which is `step` or more; the same for the others.
void unfilter_left_from(size_t start, uint8_t* row, size_t bytes, size_t step) {
  for (size_t i = start; i < bytes; ++i) row[i] = static_cast<uint8_t>(row[i] + row[i - step]);
}

void unfilter_average_from(size_t start, uint8_t* row, const uint8_t* above, size_t bytes, size_t step) {
  for (size_t i = start; i < bytes; ++i) row[i] = static_cast<uint8_t>(row[i] + (row[i - step] + above[i]) / 2);
}

void unfilter_paeth_from(size_t start, uint8_t* row, const uint8_t* above, size_t bytes, size_t step) {
  for (size_t i = start; i < bytes; ++i) {
    const int a = row[i - step], b = above[i], c = above[i - step];
    const int to_a = std::abs(b - c), to_b = std::abs(a - c), to_c = std::abs(a + b - 2 * c);
    const int nearest = to_a <= to_b && to_a <= to_c ? a : to_b <= to_c ? b : c;
    row[i] = static_cast<uint8_t>(row[i] + nearest);
  }
}

#if defined(__SSE2__)
// Four bytes: a pixel, of three bytes with one of the next.
__m128i load_four(const uint8_t* pixel) {
  int bytes;
  std::memcpy(&bytes, pixel, sizeof bytes);
  return _mm_cvtsi32_si128(bytes);
}

template <size_t step>
void store_pixel(__m128i bytes, uint8_t* pixel) {
  const int four = _mm_cvtsi128_si32(bytes);
  std::memcpy(pixel, &four, step);
}

// A pixel of `step` bytes at a time, where the next pixel's bytes are there to be read. Gives where it ended; the same
// for the others.
template <size_t step>
size_t unfilter_left_pixels(uint8_t* row, size_t bytes) {
  size_t i = step;
  __m128i a = load_four(row);
  for (; i + 4 <= bytes; i += step) {
    a = _mm_add_epi8(load_four(row + i), a);
    store_pixel<step>(a, row + i);
  }
  return i;
}

template <size_t step>
size_t unfilter_average_pixels(uint8_t* row, const uint8_t* above, size_t bytes) {
  size_t i = step;
  __m128i a = load_four(row);
  for (; i + 4 <= bytes; i += step) {
    const __m128i b = load_four(above + i);
    // The instruction rounds up.
    const __m128i odd = _mm_and_si128(_mm_xor_si128(a, b), _mm_set1_epi8(1));
    a = _mm_add_epi8(load_four(row + i), _mm_sub_epi8(_mm_avg_epu8(a, b), odd));
    store_pixel<step>(a, row + i);
  }
  return i;
}

__m128i load_pixel(const uint8_t* pixel) { return _mm_unpacklo_epi8(load_four(pixel), _mm_setzero_si128()); }

__m128i absolute(__m128i words) { return _mm_max_epi16(words, _mm_sub_epi16(_mm_setzero_si128(), words)); }

__m128i choose(__m128i mask, __m128i yes, __m128i no) {
  return _mm_or_si128(_mm_and_si128(mask, yes), _mm_andnot_si128(mask, no));
}

// With a channel in each number of 16 bits.
template <size_t step>
size_t unfilter_paeth_pixels(uint8_t* row, const uint8_t* above, size_t bytes) {
  size_t i = step;
  __m128i a = load_pixel(row), c = load_pixel(above);
  for (; i + 4 <= bytes; i += step) {
    const __m128i b = load_pixel(above + i), from_b = _mm_sub_epi16(b, c), from_a = _mm_sub_epi16(a, c);
    const __m128i to_a = absolute(from_b), to_b = absolute(from_a), to_c = absolute(_mm_add_epi16(from_a, from_b));
    const __m128i least = _mm_min_epi16(to_c, _mm_min_epi16(to_a, to_b));
    const __m128i b_or_c = choose(_mm_cmpeq_epi16(least, to_b), b, c);
    const __m128i nearest = choose(_mm_cmpeq_epi16(least, to_a), a, b_or_c);
    a = _mm_and_si128(_mm_add_epi16(load_pixel(row + i), nearest), _mm_set1_epi16(255));
    store_pixel<step>(_mm_packus_epi16(a, a), row + i);
    c = b;
  }
  return i;
}
#endif

void unfilter_left(uint8_t* row, size_t bytes, size_t step) {
  size_t start = step;
#if defined(__SSE2__)
  if (step == 3 && bytes >= 4) start = unfilter_left_pixels<3>(row, bytes);
  if (step == 4 && bytes >= 4) start = unfilter_left_pixels<4>(row, bytes);
#endif
  unfilter_left_from(start, row, bytes, step);
}

void unfilter_average(uint8_t* row, const uint8_t* above, size_t bytes, size_t step) {
  for (size_t i = 0; i < std::min(bytes, step); ++i) row[i] = static_cast<uint8_t>(row[i] + above[i] / 2);
  size_t start = step;
#if defined(__SSE2__)
  if (step == 3 && bytes >= 4) start = unfilter_average_pixels<3>(row, above, bytes);
  if (step == 4 && bytes >= 4) start = unfilter_average_pixels<4>(row, above, bytes);
#endif
  unfilter_average_from(start, row, above, bytes, step);
}

void unfilter_paeth(uint8_t* row, const uint8_t* above, size_t bytes, size_t step) {
  for (size_t i = 0; i < std::min(bytes, step); ++i) row[i] = static_cast<uint8_t>(row[i] + above[i]);
  size_t start = step;
#if defined(__SSE2__)
  if (step == 3 && bytes >= 4) start = unfilter_paeth_pixels<3>(row, above, bytes);
  if (step == 4 && bytes >= 4) start = unfilter_paeth_pixels<4>(row, above, bytes);
#endif
  unfilter_paeth_from(start, row, above, bytes, step);
}

}  // namespace

bool unfilter(int kind, uint8_t* row, const uint8_t* above, size_t bytes, size_t step) {
  switch (kind) {
    case 0: return true;
    case 1: unfilter_left(row, bytes, step); return true;
    case 2:
      for (size_t i = 0; i < bytes; ++i) row[i] = static_cast<uint8_t>(row[i] + above[i]);
      return true;
    case 3: unfilter_average(row, above, bytes, step); return true;
    case 4: unfilter_paeth(row, above, bytes, step); return true;
    default: return false;
  }
}

}  // namespace r1v
