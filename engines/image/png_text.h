// Texts in a PNG, which may hold the orientation: Pillow refuses a file over some that it cannot read.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace r1v {

struct InflatedText {
  std::string text;
  bool is_damaged = false;
  bool too_large = false;  // more than 1 MiB
};

// A deflated text; what is cut off counts as whole.
InflatedText inflate_text(std::string_view packed);

struct InternationalText {
  std::string key, text;
  bool is_valid = false;  // UTF-8
  bool too_large = false;
};

// The content of an iTXt chunk; none where Pillow ignores it.
std::optional<InternationalText> parse_international_text(std::string_view body);

}  // namespace r1v
