// What a decoder gives: the samples as Pillow decodes them, before an image policy makes them RGB.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "image/pixels.h"

namespace r1v {

enum class RasterMode {
  kColor,        // RGB, and gray as RGB; the fourth byte is 255
  kColorAlpha,   // RGB and gray with alpha
  kPalette,      // the first byte is an index
  kSixteenBits,  // gray; the first two bytes are a sample, the lower byte first
  kCmyk,
};

struct Raster {
  RasterMode mode = RasterMode::kColor;
  Pixels pixels;

  std::array<uint8_t, 256 * 4> palette{};     // RGBA; alpha is 255 where the file has none
  std::optional<std::array<uint8_t, 3>> key;  // the transparent color, of kColor
  std::optional<uint16_t> sixteen_bit_key;    // the transparent gray, of kSixteenBits
  bool key_has_sixteen_bits = false;          // of a color that was cut to 8 bits: it cannot be applied
  bool key_is_gray = false;
  int orientation = 1;  // of EXIF or XMP, 1 to 8 where it is sound
};

// Limits, checked on the header before anything is decoded.
struct ImageLimits {
  int64_t max_pixels = 80'000'000;
  int64_t max_side = 65'535;
};

// The encoded bytes of an image, and its name in errors.
struct EncodedImage {
  const uint8_t* data = nullptr;
  size_t size = 0;
  std::string where = "image data";
};

// Refuse an image size in pixels that is zero or too large. Throws kInput.
void require_size(int64_t width, int64_t height, const ImageLimits& limits, const std::string& where);

// "The image is damaged or cut off." with what was found. Throws kInput.
[[noreturn]] void throw_damaged(const std::string& where, const std::string& found);

// The decoders. Each throws kInput: the image is damaged, cut off, empty or too large.
Raster decode_jpeg(const EncodedImage& image, const ImageLimits& limits);
Raster decode_webp(const EncodedImage& image, const ImageLimits& limits);
// `as_displayed`: with transparency and orientation; and of an animation whose first image is for viewers that cannot
// animate, the first frame instead of it.
Raster decode_png(const EncodedImage& image, const ImageLimits& limits, bool as_displayed);

}  // namespace r1v
