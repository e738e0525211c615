#include "text/byte_level.h"

#include <array>

#include "text/unicode.h"

namespace r1v {
namespace {

constexpr char32_t kCharacters = 256 + 68;  // 188 bytes stand for themselves, the other 68 follow from U+0100 on

bool is_printable(int byte) { return (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad); }

// Character -> byte, -1 for none.
std::array<int, kCharacters> make_bytes() {
  std::array<int, kCharacters> bytes;
  bytes.fill(-1);
  size_t others = 256;
  for (int byte = 0; byte < 256; ++byte) bytes[is_printable(byte) ? static_cast<size_t>(byte) : others++] = byte;
  return bytes;
}

}  // namespace

bool to_bytes(std::string_view token, std::string* bytes) {
  static const std::array<int, kCharacters> kBytes = make_bytes();
  bytes->clear();
  for (size_t at = 0; at < token.size();) {
    const char32_t character = next_character(token, &at);
    if (character >= kCharacters || kBytes[character] < 0) return false;
    bytes->push_back(static_cast<char>(kBytes[character]));
  }
  return true;
}

}  // namespace r1v
