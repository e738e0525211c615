// `data:` URLs (RFC 2397), as r1v_export/processing/image_source.py reads them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace r1v::cli {

bool is_data_url(const std::string& source);

// The content, base64 or percent-encoded; its media type is not used. Ends the program with an input error where the
// URL is malformed or its content is larger than `limit` bytes.
std::vector<uint8_t> read_data_url(const std::string& url, size_t limit);

}  // namespace r1v::cli
