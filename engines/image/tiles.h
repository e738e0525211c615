// Images become tiles: bit-equal to r1v_export/processing/preprocess.py, and so to Pillow below 13 and numpy.
#pragma once

#include <vector>

#include "image/pixels.h"
#include "image/tiling.h"

namespace r1v {

// The tiles of an image, row by row, then its thumbnail if there are several: float32 [T, 3, S, S], scaled to 0..1 and
// normalized, written to `out`, which has room for tile_count() x 3 x S x S numbers.
// `threads`: at most so many work on it; 0 for one per processor, up to 4. Throws kInput: the image has no pixels or is
// too large.
void write_pixel_values(const Pixels& image, const Tiling& tiling, float* out, int threads = 0);

// The same in a vector.
std::vector<float> pixel_values(const Pixels& image, const Tiling& tiling, int threads = 0);

}  // namespace r1v
