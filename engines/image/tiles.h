// Images become tiles: bit-equal to r1v_export/processing/preprocess.py, and so to Pillow below 13 and numpy.
#pragma once

#include <cstddef>

#include "base/large_array.h"
#include "image/pixels.h"
#include "image/tiling.h"

namespace r1v {

// The tiles of an image, row by row, then its thumbnail if there are several: float32 [T, 3, S, S], scaled to 0..1 and
// normalized, written to `out`, which has room for tile_count() x 3 x S x S numbers.
// `threads`: at most so many work on it, and 8; 0 for the cores that this process may use. Throws kInput: the image has
// no pixels or is too large.
void write_pixel_values(const Pixels& image, const Tiling& tiling, float* out, int threads = 0);

// Tiles of one size S, float32 [T, 3, S, S].
struct PixelValues {
  size_t tiles = 0;
  size_t count = 0;  // of numbers: T x 3 x S x S
  LargeArray<float> values;
};

// The same in memory of its own.
PixelValues pixel_values(const Pixels& image, const Tiling& tiling, int threads = 0);

}  // namespace r1v
