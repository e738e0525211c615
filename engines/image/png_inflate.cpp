#include "image/png_inflate.h"

#include <libdeflate.h>

#include <limits>

namespace r1v {
namespace {

constexpr size_t kMostBytes = size_t{256} << 20;

// All pieces of compressed data up to the end of the frame, which are copied only where they are several.
class Packed {
 public:
  void add(std::string_view piece) {
    if (pieces_++ == 0) {
      data_ = piece;
      return;
    }
    if (pieces_ == 2) joined_ = data_;
    joined_ += piece;
    data_ = joined_;
  }
  std::string_view data() const { return data_; }

 private:
  size_t pieces_ = 0;
  std::string_view data_;
  std::string joined_;
};

struct DecompressorDeleter {
  void operator()(libdeflate_decompressor* decompressor) const { libdeflate_free_decompressor(decompressor); }
};

}  // namespace

std::unique_ptr<uint8_t[]> inflate_at_once(PngStream* stream, size_t bytes) {
  if (bytes > kMostBytes) return nullptr;
  PngStream ahead = *stream;
  Packed packed;
  try {
    for (std::string_view piece; !(piece = ahead.read_data(std::numeric_limits<size_t>::max())).empty();) {
      packed.add(piece);
    }
  } catch (const Error&) {
    return nullptr;
  }
  const std::unique_ptr<libdeflate_decompressor, DecompressorDeleter> decompressor(libdeflate_alloc_decompressor());
  if (decompressor == nullptr) throw std::bad_alloc();
  std::unique_ptr<uint8_t[]> inflated(new uint8_t[bytes]);
  size_t used = 0, made = 0;
  const libdeflate_result result = libdeflate_zlib_decompress_ex(
      decompressor.get(), packed.data().data(), packed.data().size(), inflated.get(), bytes, &used, &made);
  if (result != LIBDEFLATE_SUCCESS || made != bytes) return nullptr;
  *stream = std::move(ahead);
  return inflated;
}

}  // namespace r1v
