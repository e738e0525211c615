#include "image/image_policy.h"

#include <algorithm>

namespace r1v {
namespace {

[[noreturn]] void throw_unsupported(const std::string& where, const std::string& found, const std::string& fix) {
  throw Error(
      Code::kInput, "The image's samples are of an unsupported kind.",
      {where, "8 or 16 bits per sample: gray, RGB, CMYK or a palette, with or without transparency", found, fix});
}

template <typename Change>
void change_each(Pixels* pixels, Change change) {
  uint8_t* pixel = pixels->row(0);
  for (size_t i = 0; i < pixels->count(); ++i, pixel += Pixels::kBytes) change(pixel);
}

// a * b / 255, rounded, in integers as Pillow has it.
uint32_t multiply_255(uint32_t a, uint32_t b) {
  const uint32_t product = a * b + 128;
  return (product + (product >> 8)) >> 8;
}

void cmyk_to_rgb(uint8_t* pixel) {
  const uint32_t light = 255u - pixel[3];
  for (int i = 0; i < 3; ++i) pixel[i] = static_cast<uint8_t>(light - std::min(light, multiply_255(pixel[i], light)));
  pixel[3] = 255;
}

// A color over opaque white, in fixed point with 7 bits as Pillow's alpha_composite has it.
void compose_on_white(uint8_t* pixel) {
  constexpr uint32_t kBits = 7;
  const uint32_t of_pixel = uint32_t{pixel[3]} << kBits, of_white = (255u << kBits) - of_pixel;
  for (int i = 0; i < 3; ++i) {
    const uint32_t sum = pixel[i] * of_pixel + 255 * of_white + (128u << kBits);
    pixel[i] = static_cast<uint8_t>((sum + (sum >> 8)) >> 8 >> kBits);
  }
  pixel[3] = 255;
}

void look_up(Raster* raster) {
  const std::array<uint8_t, 1024>& palette = raster->palette;
  change_each(&raster->pixels, [&](uint8_t* pixel) { std::memcpy(pixel, &palette[4 * size_t{pixel[0]}], 4); });
}

// The upper byte of each sample; the transparent one is white.
void sixteen_bits_to_rgb(Raster* raster) {
  const int key = raster->sixteen_bit_key ? *raster->sixteen_bit_key : -1;
  change_each(&raster->pixels, [key](uint8_t* pixel) {
    const uint8_t gray = (pixel[1] << 8 | pixel[0]) == key ? uint8_t{255} : pixel[1];
    pixel[0] = pixel[1] = pixel[2] = gray;
  });
}

// The transparent color becomes white.
void apply_key(Raster* raster) {
  const std::array<uint8_t, 3>& key = *raster->key;
  change_each(&raster->pixels, [&key](uint8_t* pixel) {
    if (pixel[0] == key[0] && pixel[1] == key[1] && pixel[2] == key[2]) pixel[0] = pixel[1] = pixel[2] = 255;
  });
}

// EXIF 2.32, tag Orientation: what brings the stored rows and columns upright.
Pixels transpose(Pixels stored, int orientation) {
  if (orientation < 2 || orientation > 8) return stored;
  const bool swaps = orientation >= 5;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const int width = stored.width(), height = stored.height();
  Pixels upright(swaps ? height : width, swaps ? width : height);
  for (int y = 0; y < upright.height(); ++y) {
    uint8_t* out = upright.row(y);
    for (int x = 0; x < upright.width(); ++x, out += Pixels::kBytes) {
      const int column = swaps ? y : x, row = swaps ? x : y;
      std::memcpy(out, stored.at(from_right ? width - 1 - column : column, from_bottom ? height - 1 - row : row),
                  Pixels::kBytes);
    }
  }
  return upright;
}

}  // namespace

Pixels to_rgb(Raster raster, ImagePolicy policy, const std::string& where) {
  const bool displayed = policy == ImagePolicy::kAsDisplayed;
  switch (raster.mode) {
    case RasterMode::kSixteenBits:
      if (!displayed) {
        throw_unsupported(where, "16-bit gray", "convert it to an 8-bit PNG or JPEG first, or build as_displayed");
      }
      sixteen_bits_to_rgb(&raster);
      break;
    case RasterMode::kCmyk: change_each(&raster.pixels, cmyk_to_rgb); break;
    case RasterMode::kPalette: look_up(&raster); break;
    case RasterMode::kColor:
    case RasterMode::kColorAlpha: break;
  }
  if (!displayed) return std::move(raster.pixels);
  if (raster.key && raster.key_has_sixteen_bits) {
    throw_unsupported(where, "16-bit color with a transparent color", "convert it to an 8-bit PNG first");
  }
  if (raster.mode == RasterMode::kColorAlpha || raster.mode == RasterMode::kPalette) {
    change_each(&raster.pixels, compose_on_white);
  }
  if (raster.key) apply_key(&raster);
  return transpose(std::move(raster.pixels), raster.orientation);
}

}  // namespace r1v
