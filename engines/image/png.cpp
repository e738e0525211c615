// The pixels of a PNG: inflated, unfiltered and placed as Pillow's ZipDecode does it. Checksums of image data need not
// be right, and what comes after the last row is not inflated, as there.
#include <zlib.h>

#include <algorithm>
#include <vector>

#include "image/exif.h"
#include "image/png_filters.h"
#include "image/png_inflate.h"
#include "image/png_stream.h"
#include "image/raster.h"

namespace r1v {
namespace {

constexpr size_t kReadBytes = 65'536;

// One pass of Adam7: where it starts, and how far its pixels are apart. Without interlacing there is one dense pass.
struct Pass {
  int left, top, step_x, step_y;
};
constexpr Pass kDense = {0, 0, 1, 1};
constexpr Pass kAdam7[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                           {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};

int width_of(const Pass& pass, int width) { return (width - pass.left + pass.step_x - 1) / pass.step_x; }

bool is_palette(PngLayout layout) { return layout >= PngLayout::kIndex1 && layout <= PngLayout::kIndex8; }

void store(uint8_t* pixel, uint8_t r, uint8_t g, uint8_t b, uint8_t a) {
  pixel[0] = r;
  pixel[1] = g;
  pixel[2] = b;
  pixel[3] = a;
}

// Samples below 8 bits: gray scaled up to 8 bits, or indices.
void unpack_packed(PngLayout layout, const uint8_t* row, int count, uint8_t* pixel, size_t step) {
  const int bits = bits_per_pixel(layout), most = (1 << bits) - 1;
  const int scale = is_palette(layout) ? 1 : 255 / most;
  for (int x = 0; x < count; ++x, pixel += step) {
    const int shift = 8 - bits - x * bits % 8;
    const uint8_t value = static_cast<uint8_t>((row[x * bits / 8] >> shift & most) * scale);
    store(pixel, value, value, value, 255);
  }
}

// Samples of whole bytes: where red, green, blue and alpha lie in a pixel of `bytes` bytes; alpha of -1 is opaque.
template <int bytes, int r, int g, int b, int a>
void unpack_bytes(const uint8_t* row, int count, uint8_t* pixel, size_t step) {
  for (int x = 0; x < count; ++x, pixel += step, row += bytes) {
    store(pixel, row[r], row[g], row[b], a < 0 ? uint8_t{255} : row[a < 0 ? 0 : a]);
  }
}

// `count` pixels of a row of the file, `step` bytes apart in the image. Of 16 bits the upper byte is taken, but for
// gray alone, of which both are kept.
void unpack(PngLayout layout, const uint8_t* row, int count, uint8_t* pixel, size_t step) {
  switch (layout) {
    case PngLayout::kGray8:
    case PngLayout::kIndex8: return unpack_bytes<1, 0, 0, 0, -1>(row, count, pixel, step);
    case PngLayout::kGray16: return unpack_bytes<2, 1, 0, 0, -1>(row, count, pixel, step);
    case PngLayout::kRgb8: return unpack_bytes<3, 0, 1, 2, -1>(row, count, pixel, step);
    case PngLayout::kRgb16: return unpack_bytes<6, 0, 2, 4, -1>(row, count, pixel, step);
    case PngLayout::kGrayAlpha8: return unpack_bytes<2, 0, 0, 0, 1>(row, count, pixel, step);
    case PngLayout::kGrayAlpha16: return unpack_bytes<4, 0, 0, 0, 2>(row, count, pixel, step);
    case PngLayout::kRgba8: return unpack_bytes<4, 0, 1, 2, 3>(row, count, pixel, step);
    case PngLayout::kRgba16: return unpack_bytes<8, 0, 2, 4, 6>(row, count, pixel, step);
    default: return unpack_packed(layout, row, count, pixel, step);
  }
}

class Inflater {
 public:
  Inflater() {
    if (inflateInit(&stream_) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  z_stream* operator->() { return &stream_; }
  int inflate() { return ::inflate(&stream_, Z_NO_FLUSH); }

 private:
  z_stream stream_{};
};

// Decodes one frame into a box of the canvas.
class FrameDecoder {
 public:
  FrameDecoder(PngStream* stream, Pixels* canvas, const std::string& where)
      : stream_(stream), canvas_(canvas), where_(where), layout_(stream->info().layout) {
    const PngInfo& info = stream->info();
    const Box box =
        info.box.value_or(Box{0, 0, static_cast<uint32_t>(canvas->width()), static_cast<uint32_t>(canvas->height())});
    left_ = static_cast<int>(box[0]);
    top_ = static_cast<int>(box[1]);
    width_ = static_cast<int>(box[2]) - left_;
    height_ = static_cast<int>(box[3]) - top_;
    // The header may have been another one when the frame was compared with it.
    const bool is_inside =
        box[2] <= static_cast<uint32_t>(canvas->width()) && box[3] <= static_cast<uint32_t>(canvas->height());
    if (width_ < 1 || height_ < 1 || !is_inside) throw_damaged(where, "a frame without pixels or beyond the canvas");
    if (info.interlaced) left_ = top_ = 0;  // as Pillow places it
    const size_t bits = static_cast<size_t>(bits_per_pixel(layout_)) * static_cast<size_t>(width_);
    row_.resize((bits + 7) / 8 + 1);
    above_.resize(row_.size());
  }

  // Rows that the data lacks, where it ends after a whole row, stay as they are: zero in the first frame, of which
  // there is nothing before.
  void decode(bool is_first) {
    const LargeArray<uint8_t> inflated = inflate_at_once(stream_, whole_bytes());
    if (is_first && (inflated == nullptr || stream_->info().box)) canvas_->clear();
    if (inflated == nullptr) return decode_pieces();
    start_pass(0);
    const uint8_t* above = above_.data();
    for (uint8_t* row = inflated.get(); take_row(row, above);) {
      above = is_new_pass_ ? above_.data() : row;
      row += taken_bytes_;
    }
  }

 private:
  const Pass& pass() const { return stream_->info().interlaced ? kAdam7[pass_] : kDense; }

  void start_pass(int number) {
    pass_ = number;
    y_ = pass().top;
    pass_width_ = width_of(pass(), width_);
    row_bytes_ = (static_cast<size_t>(bits_per_pixel(layout_)) * static_cast<size_t>(std::max(pass_width_, 0)) + 7) / 8;
  }

  // Of all rows, with their filters.
  size_t whole_bytes() {
    size_t bytes = 0;
    for (int number = 0; number < (stream_->info().interlaced ? 7 : 1); ++number) {
      start_pass(number);
      const int rows = std::max((height_ - pass().top + pass().step_y - 1) / pass().step_y, 0);
      if (row_bytes_ > 0) bytes += (row_bytes_ + 1) * static_cast<size_t>(rows);
    }
    return bytes;
  }

  // The same with zlib, row by row, as far as the data goes.
  void decode_pieces() {
    start_pass(0);
    Inflater inflater;
    size_t held = 0;
    while (true) {
      const std::string_view data = stream_->read_data(kReadBytes);
      if (data.empty()) throw_damaged(where_, "image data that is cut off");
      inflater->next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
      inflater->avail_in = static_cast<uInt>(data.size());
      while (inflater->avail_in > 0) {
        inflater->next_out = row_.data() + held;
        inflater->avail_out = static_cast<uInt>(row_bytes_ + 1 - held);
        const int state = inflater.inflate();
        if (state < 0) throw_damaged(where_, "image data that cannot be inflated");
        held = row_bytes_ + 1 - inflater->avail_out;
        if (held < row_bytes_ + 1) break;
        held = 0;
        if (!take_row(row_.data(), above_.data()) || state == Z_STREAM_END) return;
        if (is_new_pass_) std::fill(row_.begin(), row_.end(), uint8_t{0});
        std::swap(row_, above_);
      }
    }
  }

  // Places a whole row, of which the first byte is the filter; whether there are more.
  bool take_row(uint8_t* row, const uint8_t* above) {
    const size_t step = static_cast<size_t>((bits_per_pixel(layout_) + 7) / 8);
    if (!unfilter(row[0], row + 1, above + 1, row_bytes_, step)) throw_damaged(where_, "an unknown filter of a row");
    taken_bytes_ = row_bytes_ + 1;
    is_new_pass_ = false;
    unpack(layout_, row + 1, pass_width_, canvas_->at(left_ + pass().left, top_ + y_),
           Pixels::kBytes * static_cast<size_t>(pass().step_x));
    y_ += pass().step_y;
    if (!stream_->info().interlaced) return y_ < height_;
    while (y_ >= height_ || row_bytes_ == 0) {
      if (pass_ == 6) return false;
      start_pass(pass_ + 1);
      is_new_pass_ = true;
    }
    return true;
  }

  PngStream* stream_;
  Pixels* canvas_;
  std::string where_;
  PngLayout layout_;
  int left_ = 0, top_ = 0, width_ = 0, height_ = 0;
  int pass_ = 0, y_ = 0, pass_width_ = 0;
  size_t row_bytes_ = 0, taken_bytes_ = 0;
  bool is_new_pass_ = false;          // above its first row there is nothing
  std::vector<uint8_t> row_, above_;  // the kind of filter, then samples; zeros at first
};

uint8_t low_byte_of_u16(const std::string& data, size_t at) { return static_cast<uint8_t>(data[2 * at + 1]); }

uint32_t u16(const std::string& data) {
  return static_cast<uint32_t>(static_cast<uint8_t>(data[0]) << 8 | static_cast<uint8_t>(data[1]));
}

void read_palette(const PngInfo& info, const std::string& where, Raster* raster) {
  for (size_t i = 3; i < raster->palette.size(); i += 4) raster->palette[i] = 255;
  const std::string palette = info.palette.value_or("");
  const size_t entries = palette.size() / 3;
  if (entries > 256) throw_damaged(where, "a palette of " + std::to_string(entries) + " colors");
  for (size_t i = 0; i < entries; ++i) {
    for (size_t channel = 0; channel < 3; ++channel) {
      raster->palette[4 * i + channel] = static_cast<uint8_t>(palette[3 * i + channel]);
    }
  }
}

// Alpha of each entry; as Pillow, a single transparent one among opaque ones may lie beyond what follows it.
void read_palette_alpha(const std::string& alpha, Raster* raster) {
  for (size_t i = 0; i < alpha.size(); ++i) raster->palette[4 * i + 3] = static_cast<uint8_t>(alpha[i]);
}

// Whether tRNS says that one entry is fully transparent and the others are opaque (Pillow's `_simple_palette`).
bool is_one_index(const std::string& alpha) {
  const size_t zero = alpha.find_first_not_of('\xff');
  if (zero == std::string::npos || alpha[zero] != 0) return false;
  const size_t after = alpha.find_first_not_of('\xff', zero + 1);
  return after == std::string::npos || (after + 1 == alpha.size() && alpha[after] == '\n');
}

void read_transparency(const PngInfo& info, const std::string& where, Raster* raster) {
  if (!info.transparency) return;
  const std::string& content = *info.transparency;
  switch (info.layout) {
    case PngLayout::kIndex1:
    case PngLayout::kIndex2:
    case PngLayout::kIndex4:
    case PngLayout::kIndex8: {
      if (is_one_index(content)) {
        const size_t index = content.find('\0');
        if (index > 255) throw_damaged(where, "a transparent index beyond the palette");
        raster->palette[4 * index + 3] = 0;
        return;
      }
      if (content.size() > 256) throw_damaged(where, "more transparent indices than a palette has");
      return read_palette_alpha(content, raster);
    }
    case PngLayout::kGray16: raster->sixteen_bit_key = static_cast<uint16_t>(u16(content)); return;
    case PngLayout::kRgb8:
    case PngLayout::kRgb16:
      raster->key = {low_byte_of_u16(content, 0), low_byte_of_u16(content, 1), low_byte_of_u16(content, 2)};
      raster->key_has_sixteen_bits = info.layout == PngLayout::kRgb16;
      return;
    default: break;
  }
  uint32_t gray = u16(content);
  if (info.layout == PngLayout::kGray1) gray = gray != 0 ? 255 : 0;
  if (info.layout == PngLayout::kGray2) gray *= 85;
  if (info.layout == PngLayout::kGray4) gray *= 17;
  const uint8_t value = static_cast<uint8_t>(gray);
  raster->key = {value, value, value};
  raster->key_is_gray = true;
}

int orientation_of(const PngInfo& info) {
  if (info.exif_is_text) return 1;
  std::string exif = info.exif.value_or("");
  if (!info.exif && info.profile) {
    const std::optional<std::string> profile = raw_profile(*info.profile);
    if (!profile) return 1;
    exif = *profile;
  }
  return read_orientation(exif, info.xmp);
}

RasterMode mode_of(PngLayout layout) {
  if (layout == PngLayout::kGray16) return RasterMode::kSixteenBits;
  if (layout >= PngLayout::kGrayAlpha8) return RasterMode::kColorAlpha;
  return is_palette(layout) ? RasterMode::kPalette : RasterMode::kColor;
}

// Alpha of a pixel of the frame that is blended over what was there; Pillow does not apply a transparent gray here.
uint8_t alpha_of(const Raster& raster, const uint8_t* pixel) {
  if (raster.mode == RasterMode::kPalette) return raster.palette[4 * size_t{pixel[0]} + 3];
  if (raster.mode == RasterMode::kColorAlpha) return pixel[3];
  return raster.key && !raster.key_is_gray && std::equal(pixel, pixel + 3, raster.key->begin()) ? 0 : 255;
}

// The frame over the image that was there before it, by the frame's alpha, each byte as Pillow's paste does.
void blend_over(const Raster& frame, const Box& box, Pixels* before) {
  for (uint32_t y = box[1]; y < box[3]; ++y) {
    for (uint32_t x = box[0]; x < box[2]; ++x) {
      const uint8_t* pixel = frame.pixels.at(static_cast<int>(x), static_cast<int>(y));
      uint8_t* out = before->at(static_cast<int>(x), static_cast<int>(y));
      const uint32_t alpha = alpha_of(frame, pixel);
      for (size_t i = 0; i < Pixels::kBytes; ++i) {
        const uint32_t sum = pixel[i] * alpha + out[i] * (255 - alpha) + 128;
        out[i] = static_cast<uint8_t>((sum + (sum >> 8)) >> 8);
      }
    }
  }
}

void decode_next_frame(PngStream* stream, const std::string& where, Raster* raster) {
  if (stream->info().interlaced) throw_damaged(where, "an interlaced animation without a first frame");
  Pixels before(raster->pixels.width(), raster->pixels.height());
  std::memcpy(before.row(0), raster->pixels.row(0), before.count() * Pixels::kBytes);
  stream->seek_next_frame();
  FrameDecoder(stream, &raster->pixels, where).decode(false);
  stream->finish();
  if (!stream->info().blends_over || !stream->info().box) return;
  if (raster->mode == RasterMode::kSixteenBits) throw_damaged(where, "an animation of 16 bits");
  read_transparency(stream->info(), where, raster);
  blend_over(*raster, *stream->info().box, &before);
  raster->pixels = std::move(before);
}

}  // namespace

Raster decode_png(const EncodedImage& image, const ImageLimits& limits, bool as_displayed) {
  PngStream stream(image);
  stream.open();
  const PngInfo& info = stream.info();
  require_size(info.width, info.height, limits, image.where);

  Raster raster;
  raster.mode = mode_of(info.layout);
  raster.pixels = Pixels(static_cast<int>(info.width), static_cast<int>(info.height));
  if (is_palette(info.layout)) read_palette(info, image.where, &raster);
  const bool seeks = as_displayed && info.default_image;
  FrameDecoder(&stream, &raster.pixels, image.where).decode(true);
  stream.finish();
  if (seeks) decode_next_frame(&stream, image.where, &raster);
  if (as_displayed) {
    read_transparency(info, image.where, &raster);
    raster.orientation = orientation_of(info);
  } else if (is_palette(info.layout) && !info.palette && info.transparency && is_one_index(*info.transparency)) {
    throw_damaged(image.where, "no palette");  // Pillow looks its transparent color up
  }
  return raster;
}

}  // namespace r1v
