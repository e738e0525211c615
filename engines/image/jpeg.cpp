// JPEG with libjpeg-turbo, fed and finished as Pillow does it: the whole file at once, what is missing is an error.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
// jpeglib.h needs <cstdio> before it.
#include <jpeglib.h>

#include "image/exif.h"
#include "image/raster.h"

namespace r1v {
namespace {

// What libjpeg calls is C: an error in it jumps out of the frame, which therefore holds no object with a destructor.
struct Decoder {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_source_mgr source;
  std::jmp_buf on_error;
  char message[JMSG_LENGTH_MAX];
};

void fail(j_common_ptr info) {
  Decoder* decoder = static_cast<Decoder*>(info->client_data);
  info->err->format_message(info, decoder->message);
  std::longjmp(decoder->on_error, 1);
}

void ignore_message(j_common_ptr) {}
void do_nothing(j_decompress_ptr) {}
boolean no_more_input(j_decompress_ptr) { return FALSE; }

void skip_input(j_decompress_ptr info, long bytes) {
  if (bytes <= 0) return;
  const size_t skipped = std::min(static_cast<size_t>(bytes), info->src->bytes_in_buffer);
  info->src->next_input_byte += skipped;
  info->src->bytes_in_buffer -= skipped;
}

constexpr int kMarkerLimit = 65'533;
constexpr const char* kTruncated = "the file ends early";

// The steps: each is true where it succeeded, and leaves a message otherwise.
bool create(Decoder* decoder, const EncodedImage& image) {
  decoder->info.err = jpeg_std_error(&decoder->errors);
  decoder->errors.error_exit = fail;
  decoder->errors.output_message = ignore_message;
  decoder->info.client_data = decoder;
  if (setjmp(decoder->on_error)) return false;
  jpeg_create_decompress(&decoder->info);
  decoder->info.client_data = decoder;
  decoder->source = {image.data, image.size, do_nothing, no_more_input, skip_input, jpeg_resync_to_restart, do_nothing};
  decoder->info.src = &decoder->source;
  jpeg_save_markers(&decoder->info, JPEG_APP0 + 1, kMarkerLimit);
  return true;
}

bool read_header(Decoder* decoder) {
  if (setjmp(decoder->on_error)) return false;
  int state = JPEG_HEADER_TABLES_ONLY;
  while (state == JPEG_HEADER_TABLES_ONLY) state = jpeg_read_header(&decoder->info, FALSE);
  if (state == JPEG_HEADER_OK) return true;
  std::snprintf(decoder->message, sizeof decoder->message, "%s", kTruncated);
  return false;
}

// Gray samples to pixels, from the end, so that a row can be expanded in place.
void expand_gray(uint8_t* row, size_t width) {
  for (size_t x = width; x-- > 0;) {
    const uint8_t value = row[x];
    uint8_t* pixel = row + Pixels::kBytes * x;
    pixel[0] = pixel[1] = pixel[2] = value;
    pixel[3] = 255;
  }
}

// Adobe's files, the only ones in CMYK there are, hold inverted samples.
void invert(uint8_t* row, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) row[i] = static_cast<uint8_t>(255 - row[i]);
}

bool read_rows(Decoder* decoder, Pixels* pixels) {
  if (setjmp(decoder->on_error)) return false;
  jpeg_decompress_struct* info = &decoder->info;
  const size_t width = static_cast<size_t>(pixels->width());
  bool complete = jpeg_start_decompress(info) && info->output_width == info->image_width &&
                  info->output_height == info->image_height;
  while (complete && info->output_scanline < info->output_height) {
    uint8_t* row = pixels->row(static_cast<int>(info->output_scanline));
    complete = jpeg_read_scanlines(info, &row, 1) == 1;
    if (!complete) break;
    if (info->out_color_space == JCS_GRAYSCALE) expand_gray(row, width);
    if (info->out_color_space == JCS_CMYK) invert(row, width * Pixels::kBytes);
  }
  // A file that ends right after its last row, without the marker for its end, is complete.
  if (complete) jpeg_finish_decompress(info);
  if (!complete) std::snprintf(decoder->message, sizeof decoder->message, "%s", kTruncated);
  return complete;
}

// EXIF may be spread over several segments; of XMP the last one counts.
int orientation_of(const jpeg_decompress_struct& info) {
  constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
  std::string exif, xmp;
  for (jpeg_saved_marker_ptr marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const std::string_view content(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (content.substr(0, kExif.size()) == kExif) exif += exif.empty() ? content : content.substr(kExif.size());
    if (content.substr(0, kXmp.size()) == kXmp) xmp = content.substr(kXmp.size());
  }
  return read_orientation(exif, xmp);
}

// Frees what libjpeg holds.
struct Destroyer {
  Decoder* decoder;
  ~Destroyer() { jpeg_destroy_decompress(&decoder->info); }
};

}  // namespace

Raster decode_jpeg(const EncodedImage& image, const ImageLimits& limits) {
  const auto decoder = std::make_unique<Decoder>();
  std::memset(decoder.get(), 0, sizeof(Decoder));
  const Destroyer destroyer{decoder.get()};
  if (!create(decoder.get(), image) || !read_header(decoder.get())) throw_damaged(image.where, decoder->message);
  jpeg_decompress_struct* info = &decoder->info;
  require_size(info->image_width, info->image_height, limits, image.where);

  Raster raster;
  switch (info->num_components) {
    case 1: info->out_color_space = JCS_GRAYSCALE; break;
    case 3: info->out_color_space = JCS_EXT_RGBX; break;
    case 4:
      info->out_color_space = JCS_CMYK;
      raster.mode = RasterMode::kCmyk;
      break;
    default: throw_damaged(image.where, std::to_string(info->num_components) + " color components");
  }
  raster.orientation = orientation_of(*info);
  raster.pixels = Pixels(static_cast<int>(info->image_width), static_cast<int>(info->image_height));
  if (!read_rows(decoder.get(), &raster.pixels)) throw_damaged(image.where, decoder->message);
  return raster;
}

}  // namespace r1v
