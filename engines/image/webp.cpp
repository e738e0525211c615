// WebP with libwebp's decoder of animations, as Pillow does it for every WebP: the first frame on its canvas.
#include <webp/decode.h>
#include <webp/demux.h>

#include "image/exif.h"
#include "image/raster.h"

namespace r1v {
namespace {

struct DemuxerDeleter {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
struct DecoderDeleter {
  void operator()(WebPAnimDecoder* decoder) const { WebPAnimDecoderDelete(decoder); }
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

}  // namespace

Raster decode_webp(const EncodedImage& image, const ImageLimits& limits) {
  const WebPData data = {image.data, image.size};
  const std::unique_ptr<WebPDemuxer, DemuxerDeleter> demuxer(WebPDemux(&data));
  if (!demuxer) throw_damaged(image.where, "no whole WebP");
  const uint32_t width = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH);
  const uint32_t height = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT);
  require_size(width, height, limits, image.where);

  WebPAnimDecoderOptions options;
  if (!WebPAnimDecoderOptionsInit(&options)) throw Error(Code::kCapability, "This libwebp is another version.", {});
  options.use_threads = 1;
  const std::unique_ptr<WebPAnimDecoder, DecoderDeleter> decoder(WebPAnimDecoderNew(&data, &options));
  uint8_t* canvas = nullptr;
  int timestamp = 0;
  if (!decoder || !WebPAnimDecoderGetNext(decoder.get(), &canvas, &timestamp)) {
    throw_damaged(image.where, "a frame that cannot be decoded");
  }
  WebPBitstreamFeatures features;
  const bool known = WebPGetFeatures(image.data, image.size, &features) == VP8_STATUS_OK;

  Raster raster;
  raster.mode = known && !features.has_alpha ? RasterMode::kColor : RasterMode::kColorAlpha;
  raster.orientation = read_orientation(chunk(demuxer.get(), "EXIF"), chunk(demuxer.get(), "XMP "));
  raster.pixels = Pixels(static_cast<int>(width), static_cast<int>(height));
  std::memcpy(raster.pixels.row(0), canvas, raster.pixels.count() * Pixels::kBytes);
  return raster;
}

}  // namespace r1v
