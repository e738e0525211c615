// Image files of any content: refused with an Error, or decoded under both policies and cut into tiles.
#include <zlib.h>

#include <cstdlib>

#include "image/load_image.h"
#include "image/tiles.h"

namespace {

// Small limits, so that a run decodes many images.
r1v::Tiling small_tiling() {
  r1v::Tiling tiling;
  tiling.tile_size = 9;
  tiling.grids = {{1, 1}, {1, 2}, {2, 1}, {2, 2}};
  tiling.std = {1, 1, 1};
  tiling.limits = {20'000, 4'000};
  return tiling;
}

// Gives the chunks of a PNG right checksums, without which nothing behind the first changed one would be read.
void correct_checksums(uint8_t* data, size_t size) {
  for (size_t at = 8; at + 12 <= size && data[0] == 0x89;) {
    const uint64_t length = uint64_t{data[at]} << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3];
    if (length > size - at - 12) return;
    const uLong crc = crc32_z(0, data + at + 4, static_cast<size_t>(length) + 4);
    at += 8 + static_cast<size_t>(length);
    for (int i = 0; i < 4; ++i) data[at++] = static_cast<uint8_t>(crc >> (24 - 8 * i));
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned int seed) {
  size = LLVMFuzzerMutate(data, size, most);
  if (seed % 8 != 0) correct_checksums(data, size);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const r1v::Tiling tiling = small_tiling();
  for (const r1v::ImagePolicy policy : {r1v::ImagePolicy::kAsDisplayed, r1v::ImagePolicy::kPublished}) {
    try {
      const r1v::Pixels image = r1v::load_image({data, size, "input"}, policy, tiling.limits);
      const r1v::PixelValues tiles = r1v::pixel_values(image, tiling, 1);
      // Every number was written: an image's are between 0 and 1 here.
      for (size_t i = 0; i < tiles.count; ++i) {
        if (!(tiles.values[i] >= 0 && tiles.values[i] <= 1)) std::abort();
      }
    } catch (const r1v::Error& error) {
      if (error.code() != r1v::Code::kInput) std::abort();
    }
  }
  return 0;
}
