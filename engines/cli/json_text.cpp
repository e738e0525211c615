#include "cli/json_text.h"

#include <charconv>
#include <cmath>

namespace r1v::cli {
namespace {

// The shortest number that reads the same, in Python's notation.
std::string number_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  const double size = std::abs(value);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  char buffer[64];
  const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr);
  if (plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

// `line_end`: what parts the members of this value's parent; the value's own are indented further.
std::string text_of(const OrderedJson& value, bool one_line, const std::string& line_end) {
  if (value.is_number_float()) return number_text(value.get<double>());
  if (!value.is_structured() || value.empty()) return value.dump();
  const std::string inner = one_line ? "" : line_end + "  ";
  std::string members;
  for (const auto& [key, member] : value.items()) {
    if (!members.empty()) members += one_line ? ", " : ",";
    members += inner;
    if (value.is_object()) members += OrderedJson(key).dump() + ": ";
    members += text_of(member, one_line, inner);
  }
  const char* brackets = value.is_object() ? "{}" : "[]";
  return brackets[0] + members + (one_line ? "" : line_end) + brackets[1];
}

}  // namespace

std::string json_text(const OrderedJson& value, bool one_line) {
  return text_of(value, one_line, one_line ? "" : "\n");
}

}  // namespace r1v::cli
