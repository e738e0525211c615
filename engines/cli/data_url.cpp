#include "cli/data_url.h"

#include <cctype>
#include <cstring>

#include "cli/options.h"

namespace r1v::cli {
namespace {

constexpr size_t kShownCharacters = 80;

[[noreturn]] void fail(const std::string& url, const std::string& what, const std::string& expected,
                       const std::string& found) {
  std::string message = what + "\n  where:    " + url.substr(0, kShownCharacters) + "\n  expected: " + expected;
  if (!found.empty()) message += "\n  found:    " + found;
  throw Failure{{R1V_INPUT_ERROR, message}};
}

[[noreturn]] void fail_malformed(const std::string& url, const std::string& found) {
  fail(url, "The data URL is malformed.", "data:[type][;base64],DATA", found);
}

bool equals_ignoring_case(const std::string& text, const char* lower) {
  if (text.size() != std::strlen(lower)) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(text[i])) != lower[i]) return false;
  }
  return true;
}

int hexadecimal(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  const int letter = std::tolower(static_cast<unsigned char>(digit));
  return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

// A percent sign without two digits is itself.
std::string percent_decoded(const std::string& text, size_t from) {
  std::string decoded;
  for (size_t at = from; at < text.size(); ++at) {
    const int high = text[at] == '%' && at + 2 < text.size() ? hexadecimal(text[at + 1]) : -1;
    const int low = high < 0 ? -1 : hexadecimal(text[at + 2]);
    decoded += low < 0 ? text[at] : static_cast<char>(16 * high + low);
    if (low >= 0) at += 2;
  }
  return decoded;
}

// The number of a base64 digit, or -1.
int base64_digit(char digit) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const char* found = digit == '\0' ? nullptr : std::strchr(digits, digit);
  return found == nullptr ? -1 : static_cast<int>(found - digits);
}

std::vector<uint8_t> base64_decoded(const std::string& url, const std::string& text) {
  std::string digits;
  for (const char each : text) {
    if (std::strchr(" \t\n\r\v\f", each) == nullptr || each == '\0') digits += each;
  }
  if (digits.size() % 4 != 0) fail_malformed(url, "base64 that is not whole");
  for (int padding = 0; padding < 2 && !digits.empty() && digits.back() == '='; ++padding) digits.pop_back();
  std::vector<uint8_t> decoded;
  uint32_t bits = 0;
  for (size_t i = 0; i < digits.size(); ++i) {
    const int digit = base64_digit(digits[i]);
    if (digit < 0) fail_malformed(url, "a character that is no base64");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if (i % 4 > 0) decoded.push_back(static_cast<uint8_t>(bits >> (6 - 2 * (i % 4))));
  }
  return decoded;
}

}  // namespace

bool is_data_url(const std::string& source) { return equals_ignoring_case(source.substr(0, 5), "data:"); }

std::vector<uint8_t> read_data_url(const std::string& url, size_t limit) {
  constexpr char kBase64[] = ";base64";
  const size_t comma = url.find(',');
  if (comma == std::string::npos) fail_malformed(url, "no comma between its head and its data");
  const std::string content = percent_decoded(url, comma + 1);
  const size_t size = std::strlen(kBase64);
  const bool is_base64 = comma >= size && equals_ignoring_case(url.substr(comma - size, size), kBase64);
  std::vector<uint8_t> data =
      is_base64 ? base64_decoded(url, content) : std::vector<uint8_t>(content.begin(), content.end());
  if (data.size() > limit) fail(url, "The image is too large.", "at most " + std::to_string(limit) + " bytes", "");
  return data;
}

}  // namespace r1v::cli
