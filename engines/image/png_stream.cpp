#include "image/png_stream.h"

#include <zlib.h>

#include "image/png_text.h"

namespace r1v {
namespace {

constexpr std::string_view kSignature("\x89PNG\r\n\x1a\n", 8);
constexpr size_t kMaxTextBytes = size_t{64} << 20;  // of all texts, as Pillow's MAX_TEXT_MEMORY

uint32_t u32(std::string_view data, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(data[at + i]);
  return value;
}

PngLayout layout_of(int depth, int color_type) {
  switch (color_type * 100 + depth) {
    case 1: return PngLayout::kGray1;
    case 2: return PngLayout::kGray2;
    case 4: return PngLayout::kGray4;
    case 8: return PngLayout::kGray8;
    case 16: return PngLayout::kGray16;
    case 208: return PngLayout::kRgb8;
    case 216: return PngLayout::kRgb16;
    case 301: return PngLayout::kIndex1;
    case 302: return PngLayout::kIndex2;
    case 304: return PngLayout::kIndex4;
    case 308: return PngLayout::kIndex8;
    case 408: return PngLayout::kGrayAlpha8;
    case 416: return PngLayout::kGrayAlpha16;
    case 608: return PngLayout::kRgba8;
    case 616: return PngLayout::kRgba16;
    default: return PngLayout::kNone;
  }
}

bool is_name(std::string_view name) {
  for (const char c : name) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!letter && !(c >= '0' && c <= '9') && c != '_') return false;
  }
  return true;
}

}  // namespace

int bits_per_pixel(PngLayout layout) {
  switch (layout) {
    case PngLayout::kGray1:
    case PngLayout::kIndex1: return 1;
    case PngLayout::kGray2:
    case PngLayout::kIndex2: return 2;
    case PngLayout::kGray4:
    case PngLayout::kIndex4: return 4;
    case PngLayout::kGray8:
    case PngLayout::kIndex8: return 8;
    case PngLayout::kGray16:
    case PngLayout::kGrayAlpha8: return 16;
    case PngLayout::kRgb8: return 24;
    case PngLayout::kGrayAlpha16:
    case PngLayout::kRgba8: return 32;
    case PngLayout::kRgb16: return 48;
    case PngLayout::kRgba16: return 64;
    case PngLayout::kNone: break;
  }
  return 0;
}

void PngStream::open() {
  if (std::string_view(reinterpret_cast<const char*>(image_.data), image_.size).substr(0, 8) != kSignature) {
    damaged("no signature of a PNG");
  }
  position_ = kSignature.size();
  while (true) {
    const std::optional<PngChunk> chunk = next_chunk();
    if (!chunk) damaged("the file ends before its image data");
    const Handled handled = handle(*chunk);
    if (handled == Handled::kEnd) damaged("no image data");
    if (handled == Handled::kImageData) break;
    check_crc(*chunk, {reinterpret_cast<const char*>(image_.data) + chunk->start, chunk->length});
  }
  is_open_ = true;
  is_animated_ = info_.frames && (*info_.frames > 1 || info_.default_image);
}

// None at the end of the file.
std::optional<PngChunk> PngStream::next_chunk() {
  if (pushed_back_) {
    const PngChunk chunk = *pushed_back_;
    pushed_back_.reset();
    position_ = chunk.start;
    return chunk;
  }
  if (left() < 8) {
    position_ = image_.size;
    return std::nullopt;
  }
  const std::string_view head(reinterpret_cast<const char*>(image_.data) + position_, 8);
  if (!is_name(head.substr(4))) damaged("a chunk without a name");
  position_ += 8;
  return PngChunk{std::string(head.substr(4)), position_, u32(head, 0)};
}

std::string_view PngStream::content(const PngChunk& chunk) {
  if (chunk.length > left()) damaged("a chunk " + chunk.name + " that is cut off");
  const std::string_view body(reinterpret_cast<const char*>(image_.data) + position_, chunk.length);
  position_ += chunk.length;
  return body;
}

void PngStream::check_crc(const PngChunk& chunk, std::string_view body) {
  if (left() < 4) damaged("a chunk " + chunk.name + " that is cut off");
  uLong crc = crc32(0, reinterpret_cast<const Bytef*>(chunk.name.data()), 4);
  crc = crc32_z(crc, reinterpret_cast<const Bytef*>(body.data()), body.size());
  const std::string_view stored(reinterpret_cast<const char*>(image_.data) + position_, 4);
  if (crc != u32(stored, 0)) damaged("a wrong checksum of the chunk " + chunk.name);
  position_ += 4;
}

// Where this returns kImageData or kEnd, the content was not read.
PngStream::Handled PngStream::handle(const PngChunk& chunk) {
  const std::string& name = chunk.name;
  if (name == "IEND") return Handled::kEnd;
  if (name == "IDAT" && info_.layout != PngLayout::kNone) {
    start_image_data(chunk.length);
    return Handled::kImageData;
  }
  if (name == "fdAT") {
    if (chunk.length < 4) damaged("a chunk fdAT that is cut off");
    read_sequence(content({name, chunk.start, 4}));
    if (info_.layout == PngLayout::kNone) damaged("a frame before the header");
    start_image_data(chunk.length - 4);
    return Handled::kImageData;
  }
  const std::string_view body = content(chunk);
  if (name == "IHDR") read_header(body);
  if (name == "PLTE" && info_.layout >= PngLayout::kIndex1 && info_.layout <= PngLayout::kIndex8) info_.palette = body;
  if (name == "tRNS") read_transparency(body);
  if (name == "acTL") read_animation(body);
  if (name == "fcTL") read_frame(body);
  if (name == "iCCP") read_profile(body);
  if (name == "tEXt") read_text(body);
  if (name == "zTXt") read_compressed_text(body);
  if (name == "iTXt") read_international_text(body);
  if (name == "eXIf") {
    info_.exif = body;
    info_.exif_is_text = false;
  }
  const bool is_short = (name == "gAMA" && body.size() < 4) || (name == "cHRM" && body.size() % 4 != 0) ||
                        (name == "sRGB" && body.empty()) || (name == "pHYs" && body.size() < 9);
  if (is_short) damaged("a chunk " + name + " of a wrong length");
  return Handled::kRead;
}

void PngStream::read_header(std::string_view body) {
  if (body.size() < 13) damaged("a header that is cut off");
  if (body[11] != 0) damaged("an unknown kind of filter");
  if (is_open_) {  // Its image is decoded: a second header says nothing about that, and would be wrong for a frame.
    if (is_animated_) damaged("a second header");
    return;
  }
  info_.width = u32(body, 0);
  info_.height = u32(body, 4);
  const PngLayout layout = layout_of(static_cast<unsigned char>(body[8]), static_cast<unsigned char>(body[9]));
  if (layout != PngLayout::kNone) info_.layout = layout;
  if (body[12] != 0) info_.interlaced = true;
}

void PngStream::read_transparency(std::string_view body) {
  size_t needed = 0;
  switch (info_.layout) {
    case PngLayout::kGray1:
    case PngLayout::kGray2:
    case PngLayout::kGray4:
    case PngLayout::kGray8:
    case PngLayout::kGray16: needed = 2; break;
    case PngLayout::kRgb8:
    case PngLayout::kRgb16: needed = 6; break;
    case PngLayout::kIndex1:
    case PngLayout::kIndex2:
    case PngLayout::kIndex4:
    case PngLayout::kIndex8: break;
    default: return;
  }
  if (body.size() < needed) damaged("a chunk tRNS of a wrong length");
  info_.transparency = body;
}

void PngStream::read_animation(std::string_view body) {
  if (body.size() < 8) damaged("a chunk acTL of a wrong length");
  if (info_.frames) {  // Two of them are none.
    info_.frames.reset();
    return;
  }
  const uint32_t frames = u32(body, 0);
  if (frames != 0 && frames <= 0x80000000u) info_.frames = frames;
}

void PngStream::read_frame(std::string_view body) {
  if (body.size() < 26) damaged("a chunk fcTL of a wrong length");
  const uint32_t sequence = u32(body, 0);
  if (sequence_ ? uint64_t{*sequence_} + 1 != sequence : sequence != 0) damaged("frames out of order");
  sequence_ = sequence;
  const uint64_t width = u32(body, 4), height = u32(body, 8), left = u32(body, 12), top = u32(body, 16);
  if (left + width > info_.width || top + height > info_.height) damaged("a frame beyond the canvas");
  info_.box = Box{static_cast<uint32_t>(left), static_cast<uint32_t>(top), static_cast<uint32_t>(left + width),
                  static_cast<uint32_t>(top + height)};
  info_.blends_over = body[25] == 1;
}

void PngStream::read_sequence(std::string_view body) {
  const uint32_t sequence = u32(body, 0);
  if (!sequence_ || uint64_t{*sequence_} + 1 != sequence) damaged("frames out of order");
  sequence_ = sequence;
}

void PngStream::start_image_data(size_t length) {
  if (!info_.box && info_.frames) info_.default_image = true;
  data_left_ = length;
}

// A color profile is not used, but Pillow refuses one that it cannot hold.
void PngStream::read_profile(std::string_view body) {
  const size_t end = body.find('\0');
  const size_t method = end == std::string_view::npos ? 0 : end + 1;
  if (method >= body.size() || body[method] != 0) damaged("an unknown compression of a color profile");
  if (inflate_text(body.substr(method + 1)).too_large) damaged("a color profile that is too large");
}

void PngStream::keep_text(std::string_view key, std::string_view value, bool is_latin) {
  text_bytes_ += value.size();
  if (text_bytes_ > kMaxTextBytes) damaged("too much text");
  if (key == "exif") {
    info_.exif = value;
    info_.exif_is_text = !is_latin;
  }
  if (key == "Raw profile type exif") info_.profile = value;
  if (key == "XML:com.adobe.xmp") info_.xmp = value;
}

void PngStream::read_text(std::string_view body) {
  const size_t end = body.find('\0');
  if (end == 0) return;
  keep_text(body.substr(0, end), end == std::string_view::npos ? std::string_view() : body.substr(end + 1), true);
}

void PngStream::read_compressed_text(std::string_view body) {
  const size_t end = body.find('\0');
  const std::string_view packed = end == std::string_view::npos ? std::string_view() : body.substr(end + 1);
  if (!packed.empty() && packed[0] != 0) damaged("an unknown compression of a text");
  const InflatedText text = inflate_text(packed.substr(packed.empty() ? 0 : 1));
  if (text.too_large) damaged("a text that is too large");
  if (end != 0) keep_text(body.substr(0, end), text.text, false);
}

void PngStream::read_international_text(std::string_view body) {
  const std::optional<InternationalText> text = parse_international_text(body);
  if (!text) return;
  if (text->too_large) damaged("a text that is too large");
  if (text->is_valid) keep_text(text->key, text->text, false);
  if (!text->is_valid && text->key == "XML:com.adobe.xmp") info_.xmp = text->text;
}

void PngStream::skip(size_t bytes) {
  if (bytes > left()) damaged("image data that is cut off");
  position_ += bytes;
}

std::string_view PngStream::read_data(size_t limit) {
  while (data_left_ == 0) {  // Empty chunks are allowed.
    skip_crc();
    const std::optional<PngChunk> chunk = next_chunk();
    if (!chunk) damaged("image data that is cut off");
    if (chunk->name == "fdAT") {
      handle(*chunk);
    } else if (chunk->name == "IDAT" || chunk->name == "DDAT") {
      data_left_ = chunk->length;
    } else {
      pushed_back_ = chunk;
      return {};
    }
  }
  const size_t taken = limit < data_left_ ? limit : data_left_;
  const size_t bytes = taken < left() ? taken : left();
  const std::string_view data(reinterpret_cast<const char*>(image_.data) + position_, bytes);
  data_left_ -= taken;
  position_ += bytes;
  return data;
}

void PngStream::finish() {
  position_ += data_left_ < left() ? data_left_ : left();
  while (true) {
    skip_crc();
    if (!pushed_back_ && (left() < 8 || !is_name({reinterpret_cast<const char*>(image_.data) + position_ + 4, 4}))) {
      position_ = image_.size;
      return;  // Pillow takes a file without its last chunk.
    }
    const std::optional<PngChunk> chunk = next_chunk();
    if (chunk->name == "IEND") return;
    if (chunk->name == "fcTL" && is_animated_) {
      data_left_ = 0;
      pushed_back_ = chunk;
      return;
    }
    if (handle(*chunk) == Handled::kImageData) skip(data_left_);
    data_left_ = 0;
  }
}

void PngStream::seek_next_frame() {
  skip(data_left_);
  data_left_ = 0;
  bool started = false;
  while (true) {
    skip_crc();
    const std::optional<PngChunk> chunk = next_chunk();
    if (!chunk || chunk->name == "IEND") damaged("no frame of the animation");
    if (chunk->name == "fcTL") {
      if (started) damaged("a frame without data");
      started = true;
    }
    if (handle(*chunk) != Handled::kImageData) continue;
    if (chunk->name == "fdAT" && started) return;
    skip(data_left_);
  }
}

}  // namespace r1v
