#include "text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "base/error.h"
#include "text/unicode.h"
#include "text/unicode_versions.h"

namespace r1v {
namespace {

using Characters = std::vector<utf8proc_int32_t>;

int combining_class(utf8proc_int32_t character) { return utf8proc_get_property(character)->combining_class; }

bool is_unnormalized(char32_t character) {
  const auto* found = std::upper_bound(std::begin(kUnnormalized), std::end(kUnnormalized), character,
                                       [](char32_t value, const Range& range) { return value < range.first; });
  return found != std::begin(kUnnormalized) && character <= std::prev(found)->last;
}

void decompose(char32_t character, Characters* characters) {
  utf8proc_int32_t parts[8];
  int boundary = 0;
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(character), parts, std::size(parts),
                                             UTF8PROC_DECOMPOSE, &boundary);
  if (count < 0 || count > static_cast<utf8proc_ssize_t>(std::size(parts))) {
    throw Error(Code::kInternal, "utf8proc cannot decompose a character.");
  }
  characters->insert(characters->end(), parts, parts + count);
}

// Marks that follow one another, in the order of their classes. utf8proc_decompose does it in quadratic time.
void reorder(Characters* characters) {
  const auto is_starter = [](utf8proc_int32_t character) { return combining_class(character) == 0; };
  for (auto first = characters->begin(); first != characters->end();) {
    first = std::find_if_not(first, characters->end(), is_starter);
    const auto last = std::find_if(first, characters->end(), is_starter);
    std::stable_sort(first, last, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    first = last;
  }
}

// Appends the composition of what was decomposed, and clears it.
void compose(Characters* characters, std::string* text) {
  if (characters->empty()) return;
  reorder(characters);
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  const auto count =
      utf8proc_normalize_utf32(characters->data(), static_cast<utf8proc_ssize_t>(characters->size()), options);
  for (utf8proc_ssize_t index = 0; index < count; ++index) {
    append_utf8(static_cast<char32_t>((*characters)[static_cast<size_t>(index)]), text);
  }
  characters->clear();
}

}  // namespace

std::string nfc(std::string_view text) {
  std::string normalized;
  normalized.reserve(text.size());
  Characters pending;
  for (size_t at = 0; at < text.size();) {
    const char32_t character = next_character(text, &at);
    if (is_unnormalized(character)) {
      compose(&pending, &normalized);
      append_utf8(character, &normalized);
      continue;
    }
    if (character < 0x80) compose(&pending, &normalized);  // It joins nothing that stands before it.
    decompose(character, &pending);
  }
  compose(&pending, &normalized);
  return normalized;
}

}  // namespace r1v
