#include "image/raster.h"

#include <algorithm>

namespace r1v {

void require_size(int64_t width, int64_t height, const ImageLimits& limits, const std::string& where) {
  const std::string found = std::to_string(width) + " x " + std::to_string(height) + " pixels";
  if (width < 1 || height < 1) throw Error(Code::kInput, "The image has no pixels.", {where, "", found, ""});
  // The sides are below 2^32 each, from headers; a product beyond the range is too large as well.
  int64_t pixels = 0;
  const bool beyond = multiply_overflows(width, height, &pixels);
  if (!beyond && pixels <= limits.max_pixels && std::max(width, height) <= limits.max_side) return;
  const std::string expected =
      "at most " + std::to_string(limits.max_pixels) + " pixels, and " + std::to_string(limits.max_side) + " on a side";
  throw Error(Code::kInput, "The image is too large.", {where, expected, found, "scale it down first"});
}

void throw_damaged(const std::string& where, const std::string& found) {
  throw Error(Code::kInput, "The image is damaged or cut off.", {where, "", found, ""});
}

}  // namespace r1v
