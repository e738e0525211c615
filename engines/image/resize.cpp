#include "image/resize.h"

#include <algorithm>
#include <cmath>

#include "image/resize_kernels.h"

namespace r1v {
namespace {

constexpr size_t kSlack = 32;  // bytes behind a row that the kernels may read and write
constexpr int kRows = 4;       // source rows that are resized across together; taps are a multiple of it

// The bicubic kernel with a = -0.5.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

int fixed_point(double weight) {
  const double scaled = weight * (1 << kWeightBits);
  return static_cast<int>(weight < 0 ? scaled - 0.5 : scaled + 0.5);
}

}  // namespace

ResizeAxis::ResizeAxis(int source_size, int target_size) : source(source_size), target(target_size) {
  const double scale = static_cast<double>(source) / target;
  const double filter_scale = std::max(scale, 1.0), support = 2.0 * filter_scale;
  const int most = static_cast<int>(std::ceil(support)) * 2 + 1;
  taps = (std::min(most, source) + 3) / 4 * 4;
  first.resize(static_cast<size_t>(target));
  weights.resize(checked_product({static_cast<size_t>(target), static_cast<size_t>(taps)}, "image"));
  std::vector<double> kernel(static_cast<size_t>(most));
  for (int i = 0; i < target; ++i) {
    const double center = (i + 0.5) * scale;
    const int begin = std::max(static_cast<int>(center - support + 0.5), 0);
    const int count = std::min(static_cast<int>(center + support + 0.5), source) - begin;
    double sum = 0.0;
    for (int k = 0; k < count; ++k) {
      kernel[static_cast<size_t>(k)] = bicubic((k + begin - center + 0.5) * (1.0 / filter_scale));
      sum += kernel[static_cast<size_t>(k)];
    }
    // All taps lie inside of the source, but for up to three where it has fewer samples than taps.
    const int start = std::max(std::min(begin, source - taps), 0);
    first[static_cast<size_t>(i)] = start;
    for (int k = 0; k < count; ++k) {
      const double weight = kernel[static_cast<size_t>(k)];
      const size_t place = static_cast<size_t>(i) * static_cast<size_t>(taps) + static_cast<size_t>(begin - start + k);
      weights[place] = fixed_point(sum != 0.0 ? weight / sum : weight);
    }
  }
}

BandResizer::BandResizer(const Pixels& image, const ResizeAxis& across, const ResizeAxis& down)
    : image_(image),
      across_(across),
      down_(down),
      stride_(static_cast<size_t>(across.target) + kSlack),
      packed_(resize_kernels().pack(across.weights, across.taps)) {
  const size_t taps = static_cast<size_t>(down.taps), rows = taps + kRows;
  held_.assign(rows / kRows, -1);
  ring_.resize(checked_product({rows, 3, stride_}, "image"));
  target_.resize(3 * stride_);
  rows_.resize(taps);
}

// A source row, resized across together with its neighbors; their places in the ring are taken by the rows further down
// that no target row needs at the same time.
const uint8_t* BandResizer::source_row(int y) {
  const int block = y / kRows, first = block * kRows;
  const size_t place = static_cast<size_t>(block) % held_.size();
  const TargetRows rows = {ring_.data() + 3 * stride_ * kRows * place, stride_};
  if (held_[place] != block) {
    held_[place] = block;
    const SourceRows source = {image_.row(first), image_.stride(), std::min(kRows, image_.height() - first)};
    resize_kernels().across(source, across_.first.data(), packed_.data(), across_.taps, across_.target, rows);
  }
  return rows.row(y - first, 0);
}

void BandResizer::resize(int first, int last, const std::function<void(int, const PlanarRow&)>& take) {
  const size_t taps = static_cast<size_t>(down_.taps);
  const PlanarRow row = {{target_.data(), target_.data() + stride_, target_.data() + 2 * stride_}};
  for (int y = first; y < last; ++y) {
    const int* weights = down_.weights.data() + static_cast<size_t>(y) * taps;
    const int start = down_.first[static_cast<size_t>(y)];
    for (size_t channel = 0; channel < 3; ++channel) {
      for (size_t tap = 0; tap < taps; ++tap) {
        const int source = std::min(start + static_cast<int>(tap), image_.height() - 1);
        rows_[tap] = source_row(source) + channel * stride_;
      }
      resize_kernels().down(rows_.data(), weights, down_.taps, across_.target, target_.data() + channel * stride_);
    }
    take(y, row);
  }
}

bool is_lowered_first(const Pixels& image, int target_height) {
  return image.height() > int64_t{100} * image.width() && target_height < image.height();
}

Pixels change_height(const Pixels& image, int target_height) {
  Pixels result(image.width(), target_height);
  const ResizeAxis across(image.width(), image.width()), down(image.height(), target_height);
  BandResizer(image, across, down).resize(0, target_height, [&result](int y, const PlanarRow& row) {
    uint8_t* pixel = result.row(y);
    for (int x = 0; x < result.width(); ++x, pixel += Pixels::kBytes) {
      for (size_t channel = 0; channel < 3; ++channel) pixel[channel] = row.channels[channel][x];
      pixel[3] = 255;
    }
  });
  return result;
}

}  // namespace r1v
