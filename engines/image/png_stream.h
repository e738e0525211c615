// The chunks of a PNG, read in the order and with the checks of Pillow's PngImagePlugin.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "image/raster.h"

namespace r1v {

// A rectangle of the canvas, of left, top, right and bottom.
using Box = std::array<uint32_t, 4>;

// Layout of the samples: Pillow's raw modes.
enum class PngLayout {
  kNone,
  kGray1,
  kGray2,
  kGray4,
  kGray8,
  kGray16,
  kRgb8,
  kRgb16,
  kIndex1,
  kIndex2,
  kIndex4,
  kIndex8,
  kGrayAlpha8,
  kGrayAlpha16,
  kRgba8,
  kRgba16,
};

int bits_per_pixel(PngLayout layout);

// What the chunks say.
struct PngInfo {
  uint32_t width = 0, height = 0;
  PngLayout layout = PngLayout::kNone;
  bool interlaced = false;
  std::optional<std::string> palette;  // of PLTE, RGB
  std::optional<uint32_t> frames;      // of an animation, as acTL says
  std::optional<Box> box;              // of the frame, as fcTL says
  bool blends_over = false;
  bool default_image = false;                // IDAT holds an image that is no frame
  std::optional<std::string> transparency;   // content of tRNS
  std::optional<std::string> exif, profile;  // of eXIf, or of a text "exif"; of the text "Raw profile type exif"
  bool exif_is_text = false;                 // Pillow cannot read it then
  std::string xmp;
};

// A chunk's place in the file: of its content, not of its header.
struct PngChunk {
  std::string name;
  size_t start = 0;
  size_t length = 0;
};

class PngStream {
 public:
  explicit PngStream(const EncodedImage& image) : image_(image) {}

  // Reads up to the first image data. Throws kInput: damaged, cut off, of an unknown kind, without image data.
  void open();
  // Up to `limit` bytes of compressed data of the image; empty at its end. Throws kInput: the chunks are damaged.
  std::string_view read_data(size_t limit);
  // Reads what follows the image data, up to the end or the next frame.
  void finish();
  // After finish(): goes on to the data of the next frame. Throws kInput: there is none.
  void seek_next_frame();

  const PngInfo& info() const { return info_; }

 private:
  enum class Handled { kRead, kImageData, kEnd };

  std::optional<PngChunk> next_chunk();
  Handled handle(const PngChunk& chunk);
  std::string_view content(const PngChunk& chunk);
  void check_crc(const PngChunk& chunk, std::string_view content);
  void skip_crc() { position_ = position_ + 4 < image_.size ? position_ + 4 : image_.size; }
  void skip(size_t bytes);
  size_t left() const { return image_.size - position_; }
  [[noreturn]] void damaged(const std::string& found) const { throw_damaged(image_.where, found); }

  void read_header(std::string_view content);
  void read_transparency(std::string_view content);
  void read_animation(std::string_view content);
  void read_frame(std::string_view content);
  void read_sequence(std::string_view content);
  void read_profile(std::string_view content);
  void read_text(std::string_view content);
  void read_compressed_text(std::string_view content);
  void read_international_text(std::string_view content);
  void keep_text(std::string_view key, std::string_view value, bool is_latin);
  void start_image_data(size_t length);

  EncodedImage image_;
  PngInfo info_;
  size_t position_ = 0;
  size_t data_left_ = 0;                        // of the chunk of image data that is being read
  std::optional<PngChunk> pushed_back_;         // a chunk whose header was read
  std::optional<uint32_t> sequence_;            // of the last fcTL or fdAT
  bool is_open_ = false, is_animated_ = false;  // after open()
  size_t text_bytes_ = 0;
};

}  // namespace r1v
