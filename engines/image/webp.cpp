// WebP with libwebp: the first frame on its canvas, as libwebp's decoder of animations has it, which Pillow uses for
// every WebP. That decoder draws into a canvas of its own and keeps a second one for the next frame; here the frame is
// decoded into the image.
#include <webp/decode.h>
#include <webp/demux.h>

#include "image/exif.h"
#include "image/raster.h"

namespace r1v {
namespace {

struct DemuxerDeleter {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
struct Frame {
  ~Frame() { WebPDemuxReleaseIterator(&iterator); }
  WebPIterator iterator{};
};

std::string chunk(const WebPDemuxer* demuxer, const char* name) {
  WebPChunkIterator found;
  std::string content;
  if (WebPDemuxGetChunk(demuxer, name, 1, &found)) {
    content.assign(reinterpret_cast<const char*>(found.chunk.bytes), found.chunk.size);
  }
  WebPDemuxReleaseChunkIterator(&found);
  return content;
}

// The frame at its place; around it there is transparent black.
bool decode_frame(const WebPIterator& frame, Pixels* canvas) {
  const bool is_inside = frame.x_offset >= 0 && frame.y_offset >= 0 && frame.width > 0 && frame.height > 0 &&
                         frame.width <= canvas->width() - frame.x_offset &&
                         frame.height <= canvas->height() - frame.y_offset;
  if (!is_inside) return false;
  if (frame.width < canvas->width() || frame.height < canvas->height()) canvas->clear();
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) throw Error(Code::kCapability, "This libwebp is another version.", {});
  config.options.use_threads = 1;
  config.output.colorspace = MODE_RGBA;
  config.output.is_external_memory = 1;
  uint8_t* first = canvas->at(frame.x_offset, frame.y_offset);
  const uint8_t* end = canvas->row(0) + canvas->count() * Pixels::kBytes;
  config.output.u.RGBA = {first, canvas->width() * static_cast<int>(Pixels::kBytes), static_cast<size_t>(end - first)};
  return WebPDecode(frame.fragment.bytes, frame.fragment.size, &config) == VP8_STATUS_OK;
}

}  // namespace

Raster decode_webp(const EncodedImage& image, const ImageLimits& limits) {
  const WebPData data = {image.data, image.size};
  const std::unique_ptr<WebPDemuxer, DemuxerDeleter> demuxer(WebPDemux(&data));
  if (!demuxer) throw_damaged(image.where, "no whole WebP");
  const uint32_t width = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH);
  const uint32_t height = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT);
  require_size(width, height, limits, image.where);

  WebPBitstreamFeatures features;
  const bool known = WebPGetFeatures(image.data, image.size, &features) == VP8_STATUS_OK;

  Raster raster;
  raster.mode = known && !features.has_alpha ? RasterMode::kColor : RasterMode::kColorAlpha;
  raster.orientation = read_orientation(chunk(demuxer.get(), "EXIF"), chunk(demuxer.get(), "XMP "));
  raster.pixels = Pixels(static_cast<int>(width), static_cast<int>(height));
  Frame frame;
  if (!WebPDemuxGetFrame(demuxer.get(), 1, &frame.iterator) || !decode_frame(frame.iterator, &raster.pixels)) {
    throw_damaged(image.where, "a frame that cannot be decoded");
  }
  return raster;
}

}  // namespace r1v
