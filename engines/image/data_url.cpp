#include "image/data_url.h"

#include <algorithm>
#include <cctype>
#include <cstdint>

#include "base/error.h"
#include "base/hex_digit.h"
#include "image/load_image.h"

namespace r1v {
namespace {

constexpr std::string_view kScheme = "data:", kBase64 = ";base64";

bool equals_ignoring_case(std::string_view text, std::string_view lower) {
  return std::equal(text.begin(), text.end(), lower.begin(), lower.end(),
                    [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; });
}

[[noreturn]] void throw_malformed(std::string_view url, const std::string& found) {
  throw Error(Code::kInput, "The data URL is malformed.",
              {std::string(url.substr(0, 80)), "data:[type][;base64],DATA", found, ""});
}

// A percent sign that two digits do not follow is itself.
std::string percent_decoded(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const int high = text[i] == '%' && i + 2 < text.size() ? hex_digit(text[i + 1]) : -1;
    const int low = high >= 0 ? hex_digit(text[i + 2]) : -1;
    if (low >= 0) i += 2;
    decoded += low >= 0 ? static_cast<char>(high * 16 + low) : text[i];
  }
  return decoded;
}

int base64_digit(char character) {
  if (character >= 'A' && character <= 'Z') return character - 'A';
  if (character >= 'a' && character <= 'z') return character - 'a' + 26;
  if (character >= '0' && character <= '9') return character - '0' + 52;
  return character == '+' ? 62 : character == '/' ? 63 : -1;
}

// With white space between the digits; what base64.b64decode(validate=True) of Python takes.
std::string base64_decoded(std::string_view url, const std::string& text) {
  std::string decoded;
  decoded.reserve(text.size() / 4 * 3);
  uint32_t bits = 0;
  size_t digits = 0, padding = 0;
  for (const char character : text) {
    if (std::isspace(static_cast<unsigned char>(character)) != 0) continue;
    if (character == '=') {
      ++padding;
      continue;
    }
    const int digit = base64_digit(character);
    if (digit < 0 || padding > 0) throw_malformed(url, "a character that is not base64");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if (++digits % 4 != 1) decoded += static_cast<char>(bits >> (8 - digits % 4 * 2) % 8);
  }
  const size_t rest = digits % 4;
  if (rest == 1 || padding > 2 || (rest > 0 && padding < 4 - rest)) throw_malformed(url, "base64 that is cut off");
  return decoded;
}

}  // namespace

bool is_data_url(std::string_view text) { return equals_ignoring_case(text.substr(0, kScheme.size()), kScheme); }

std::string read_data_url(std::string_view url) {
  const size_t comma = url.find(',');
  if (comma == std::string_view::npos) throw_malformed(url, "no comma between its head and its data");
  const std::string_view head = url.substr(0, comma), body = url.substr(comma + 1);
  const Error too_large(
      Code::kInput, "The image is too large.",
      {std::string(url.substr(0, 80)), "at most " + std::to_string(kMaxStreamBytes) + " bytes", "", ""});
  if (body.size() > 3 * kMaxStreamBytes) throw too_large;  // every byte percent-encoded
  std::string content = percent_decoded(body);
  const std::string_view end = head.substr(head.size() - std::min(head.size(), kBase64.size()));
  if (equals_ignoring_case(end, kBase64)) content = base64_decoded(url, content);
  if (content.size() > kMaxStreamBytes) throw too_large;
  return content;
}

}  // namespace r1v
