// Which tiles an image is cut into (r1v_export/processing/tiling.py).
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "base/json.h"
#include "image/raster.h"

namespace r1v {

// Tiles in a row and in a column.
struct TileGrid {
  int cols = 1, rows = 1;
};

// `tiling` of pipeline.json.
struct Tiling {
  int tile_size = 448;
  bool thumbnail = true;
  std::vector<TileGrid> grids;  // in the order in which they are compared
  int max_tiles_per_image = 1;
  std::array<float, 3> mean{}, std{};
  ImageLimits limits;

  // Throws kBundle: a field is missing, of another type, or out of range.
  static Tiling from_json(const Fields& tiling);
};

// The grid nearest in aspect ratio to an image of width x height pixels. Of grids exactly as near, a later one is taken
// only if the image has more than half of its pixels.
TileGrid choose_grid(int width, int height, const Tiling& tiling);

// Tiles of an image of width x height pixels, the thumbnail included.
size_t tile_count(int width, int height, const Tiling& tiling);

}  // namespace r1v
