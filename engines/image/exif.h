// The orientation of an image, from its EXIF and XMP metadata, as Pillow reads it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace r1v {

// Orientation 1 to 8, or what the tag holds; 1 where there is none, it is no whole number, or the metadata is damaged.
// `exif` may begin with "Exif\0\0"; `xmp` decides where EXIF has no such tag.
int read_orientation(std::string_view exif, std::string_view xmp);

// The bytes of a PNG's text "Raw profile type exif": hexadecimal digits from its fourth line on. None: malformed.
std::optional<std::string> raw_profile(std::string_view text);

}  // namespace r1v
