#include "cli/printable.h"

#include "base/utf8.h"

namespace r1v::cli {
namespace {

constexpr char kReplacement[] = "\xef\xbf\xbd";

unsigned code_point(std::string_view text, size_t at, size_t length) {
  const auto byte = [&](size_t offset) { return static_cast<unsigned>(static_cast<unsigned char>(text[at + offset])); };
  if (length == 1) return byte(0);
  unsigned code = byte(0) & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) code = code << 6 | (byte(i) & 0x3f);
  return code;
}

bool is_direction_mark(unsigned code) {
  return code == 0x61c || code == 0x200e || code == 0x200f || (code >= 0x202a && code <= 0x202e) ||
         (code >= 0x2066 && code <= 0x2069);
}

// The symbol of U+2400 and on that stands for a control character.
std::string symbol(unsigned code) {
  const unsigned offset = code == 0x7f ? 0x21 : code;
  return {'\xe2', '\x90', static_cast<char>(0x80 + offset)};
}

}  // namespace

std::string printable(std::string_view text) {
  std::string shown;
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    const unsigned code = length == 0 ? 0x80 : code_point(text, at, length);
    if ((code >= 0x80 && code < 0xa0) || is_direction_mark(code)) {
      shown += kReplacement;
    } else if (code == 0x7f || (code < 0x20 && code != '\n' && code != '\t')) {
      shown += symbol(code);
    } else {
      shown += text.substr(at, length);
    }
    at += length == 0 ? 1 : length;
  }
  return shown;
}

}  // namespace r1v::cli
