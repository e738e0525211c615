// Images as data: URLs (RFC 2397): r1v_export/processing/image_source.py.
#pragma once

#include <string>
#include <string_view>

namespace r1v {

// Whether a text is such a URL, as far as its first letters say.
bool is_data_url(std::string_view text);

// The content, base64 or percent-encoded; its media type is not used. Throws kInput: malformed, or larger than
// kMaxStreamBytes.
std::string read_data_url(std::string_view url);

}  // namespace r1v
