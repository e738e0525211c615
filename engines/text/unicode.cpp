#include "text/unicode.h"

#include "base/error.h"
#include "base/utf8.h"

namespace r1v {

char32_t next_character(std::string_view text, size_t* at) {
  const auto byte = [&](size_t offset) { return static_cast<unsigned char>(text[*at + offset]); };
  const size_t length = byte(0) < 0x80 ? 1 : byte(0) < 0xe0 ? 2 : byte(0) < 0xf0 ? 3 : 4;
  static constexpr unsigned kLeadBits[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
  char32_t character = byte(0) & kLeadBits[length];
  for (size_t offset = 1; offset < length; ++offset) character = (character << 6) | (byte(offset) & 0x3f);
  *at += length;
  return character;
}

void append_utf8(char32_t character, std::string* text) {
  const auto put = [&](char32_t bits) { text->push_back(static_cast<char>(bits)); };
  if (character < 0x80) {
    put(character);
  } else if (character < 0x800) {
    put(0xc0 | (character >> 6));
    put(0x80 | (character & 0x3f));
  } else if (character < 0x10000) {
    put(0xe0 | (character >> 12));
    put(0x80 | ((character >> 6) & 0x3f));
    put(0x80 | (character & 0x3f));
  } else {
    put(0xf0 | (character >> 18));
    put(0x80 | ((character >> 12) & 0x3f));
    put(0x80 | ((character >> 6) & 0x3f));
    put(0x80 | (character & 0x3f));
  }
}

bool is_space(char32_t character) {
  switch (character) {
    case 0x20:
    case 0x85:
    case 0xa0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202f:
    case 0x205f:
    case 0x3000: return true;
    default:
      return (character >= 0x09 && character <= 0x0d) || (character >= 0x1c && character <= 0x1f) ||
             (character >= 0x2000 && character <= 0x200a);
  }
}

std::string_view strip_front(std::string_view text) {
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    if (!is_space(next_character(text, &at))) break;
    start = at;
  }
  return text.substr(start);
}

std::string_view strip_end(std::string_view text) {
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xc0) == 0x80) --start;
    size_t at = start;
    if (!is_space(next_character(text, &at))) break;
    text = text.substr(0, start);
  }
  return text;
}

void require_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) {
      throw Error(Code::kInput, "The text is not valid Unicode.",
                  {"byte " + std::to_string(at), "UTF-8", "", "pass the text in UTF-8"});
    }
    at += length;
  }
}

}  // namespace r1v
