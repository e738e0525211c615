// Decoded samples become RGB (r1v_export/processing/image_policy.py).
#pragma once

#include <string>

#include "image/load_image.h"

namespace r1v {

// Throws kInput, naming `where`: samples that the policy has no rule for.
Pixels to_rgb(Raster raster, ImagePolicy policy, const std::string& where);

}  // namespace r1v
