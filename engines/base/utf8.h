// UTF-8, byte by byte.
#pragma once

#include <cstddef>
#include <string_view>

namespace r1v {

// Bytes of the character that begins at `at`, 1 to 4; 0 where the bytes are no whole, shortest-form character
// (RFC 3629: no surrogates, nothing above U+10FFFF).
inline size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t offset) -> unsigned {
    return at + offset < text.size() ? static_cast<unsigned char>(text[at + offset]) : 0u;
  };
  const auto follows = [&](size_t offset) { return (byte(offset) & 0xc0) == 0x80; };
  const unsigned lead = byte(0), second = byte(1);
  if (at >= text.size()) return 0;
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return follows(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool shortest = lead != 0xe0 || second >= 0xa0, no_surrogate = lead != 0xed || second < 0xa0;
    return follows(1) && follows(2) && shortest && no_surrogate ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool shortest = lead != 0xf0 || second >= 0x90, in_range = lead != 0xf4 || second < 0x90;
    return follows(1) && follows(2) && follows(3) && shortest && in_range ? 4 : 0;
  }
  return 0;
}

// Whether all of `text` is UTF-8.
inline bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

}  // namespace r1v
