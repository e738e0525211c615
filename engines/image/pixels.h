// Images in memory: four bytes a pixel, row by row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/checked.h"
#include "base/large_array.h"

namespace r1v {

// Red, green, blue and a fourth byte, which is alpha where the image has one. Not initialized.
class Pixels {
 public:
  static constexpr size_t kBytes = 4;  // of a pixel

  Pixels() = default;
  Pixels(int width, int height) : width_(width), height_(height) {
    const size_t bytes = checked_product({static_cast<size_t>(width), static_cast<size_t>(height), kBytes}, "image");
    bytes_ = large_array<uint8_t>(bytes + kPadding);
    std::memset(bytes_.get() + bytes, 0, kPadding);
  }

  int width() const { return width_; }
  int height() const { return height_; }
  size_t count() const { return static_cast<size_t>(width_) * static_cast<size_t>(height_); }
  size_t stride() const { return static_cast<size_t>(width_) * kBytes; }  // bytes of a row
  uint8_t* row(int y) { return bytes_.get() + stride() * static_cast<size_t>(y); }
  const uint8_t* row(int y) const { return bytes_.get() + stride() * static_cast<size_t>(y); }
  uint8_t* at(int x, int y) { return row(y) + kBytes * static_cast<size_t>(x); }
  const uint8_t* at(int x, int y) const { return row(y) + kBytes * static_cast<size_t>(x); }
  void clear() { std::memset(bytes_.get(), 0, count() * kBytes); }

 private:
  static constexpr size_t kPadding = 16;  // may be read behind the last pixel

  int width_ = 0, height_ = 0;
  LargeArray<uint8_t> bytes_;
};

}  // namespace r1v
