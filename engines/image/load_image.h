// Image files become RGB images by the image policy of the bundle (r1v_export/processing/load_image.py,
// docs/images.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/json.h"
#include "image/pixels.h"
#include "image/raster.h"

namespace r1v {

enum class ImagePolicy {
  kAsDisplayed,  // what a viewer shows: upright, transparency on white, the upper 8 of 16 bits
  kPublished,    // Image.open(file).convert("RGB") of the model cards
};

// Largest encoded image that is read, in bytes: more than 80 megapixels of any kind need.
inline constexpr uint64_t kMaxImageBytes = 1ull << 30;
// The same for what comes from a pipe or a data URL (r1v_export/processing/image_source.py).
inline constexpr uint64_t kMaxStreamBytes = 100'000'000;

// `image_policy` of pipeline.json. Throws kBundle.
ImagePolicy parse_image_policy(const Fields& pipeline);

// An image as the model is given it: the first frame, RGB; the fourth byte of a pixel says nothing. JPEG, PNG or WebP.
// Throws kInput: of another format, damaged, empty, too large, or of samples that the policy has no rule for.
Pixels load_image(const EncodedImage& image, ImagePolicy policy, const ImageLimits& limits = {});

// The same of a regular file. Throws kInput: it cannot be read, or as above.
Pixels load_image(const std::filesystem::path& path, ImagePolicy policy, const ImageLimits& limits = {});

}  // namespace r1v
