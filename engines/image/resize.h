// Pillow's bicubic resize of RGB, bit for bit, as Pillow below 13 computes it: across, then down, in fixed point; very
// tall images down first. Source: Pillow 12.3, src/libImaging/Resample.c and Image.resize. Pillow 13 changed the order
// of the passes for some shapes; the models were trained with this one, and pyproject.toml pins pillow<13 for the
// Python side.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "image/pixels.h"

namespace r1v {

// Weights of the source samples that each target sample is made of, along one axis.
struct ResizeAxis {
  ResizeAxis(int source, int target);

  int source, target;
  int taps = 0;              // samples that are read for each target sample, a multiple of 4; some weigh 0
  std::vector<int> first;    // the first of them, for each target sample
  std::vector<int> weights;  // taps for each target sample, in units of 2^-22
};

// One row of a resized image: red, green and blue apart.
struct PlanarRow {
  const uint8_t* channels[3];
};

// Resizes some rows of an image; the rows above and below may be another one's.
class BandResizer {
 public:
  // `image` and the axes must outlive it.
  BandResizer(const Pixels& image, const ResizeAxis& across, const ResizeAxis& down);

  // Calls take(y, row) for each target row from `first` up to `last`, which is excluded. Allocates nothing.
  void resize(int first, int last, const std::function<void(int, const PlanarRow&)>& take);

 private:
  const uint8_t* source_row(int y);

  const Pixels& image_;
  const ResizeAxis& across_;
  const ResizeAxis& down_;
  size_t stride_;              // between channels of a row
  std::vector<int> packed_;    // weights of `across`
  std::vector<int> held_;      // which block of source rows each place of the ring holds
  std::vector<uint8_t> ring_;  // source rows, resized across
  std::vector<uint8_t> target_;
  std::vector<const uint8_t*> rows_;
};

// Whether Pillow makes an image of this size lower before it changes its width: it is over 100 times as high as wide.
bool is_lowered_first(const Pixels& image, int target_height);

// The image with another height.
Pixels change_height(const Pixels& image, int target_height);

}  // namespace r1v
