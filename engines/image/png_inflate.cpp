#include "image/png_inflate.h"

#include <libdeflate.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace r1v {
namespace {

constexpr size_t kMostBytes = size_t{256} << 20;

// All pieces of compressed data up to the end of the frame, which are copied only where they are several.
class Packed {
 public:
  explicit Packed(const std::vector<std::string_view>& pieces) {
    if (pieces.size() == 1) data_ = pieces.front();
    if (pieces.size() < 2) return;
    size_t size = 0;
    for (std::string_view piece : pieces) size += piece.size();
    joined_ = large_array<char>(size);
    data_ = {joined_.get(), size};
    char* end = joined_.get();
    for (std::string_view piece : pieces) end = std::copy(piece.begin(), piece.end(), end);
  }
  std::string_view data() const { return data_; }

 private:
  LargeArray<char> joined_;
  std::string_view data_;
};

struct DecompressorDeleter {
  void operator()(libdeflate_decompressor* decompressor) const { libdeflate_free_decompressor(decompressor); }
};

}  // namespace

LargeArray<uint8_t> inflate_at_once(PngStream* stream, size_t bytes) {
  if (bytes > kMostBytes) return nullptr;
  PngStream ahead = *stream;
  std::vector<std::string_view> pieces;
  try {
    for (std::string_view piece; !(piece = ahead.read_data(std::numeric_limits<size_t>::max())).empty();) {
      pieces.push_back(piece);
    }
  } catch (const Error&) {
    return nullptr;
  }
  const Packed packed(pieces);
  const std::unique_ptr<libdeflate_decompressor, DecompressorDeleter> decompressor(libdeflate_alloc_decompressor());
  if (decompressor == nullptr) throw std::bad_alloc();
  LargeArray<uint8_t> inflated = large_array<uint8_t>(bytes);
  size_t used = 0, made = 0;
  const libdeflate_result result = libdeflate_zlib_decompress_ex(
      decompressor.get(), packed.data().data(), packed.data().size(), inflated.get(), bytes, &used, &made);
  if (result != LIBDEFLATE_SUCCESS || made != bytes) return nullptr;
  *stream = std::move(ahead);
  return inflated;
}

}  // namespace r1v
