// Characters of UTF-8 text, and white space as Python has it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace r1v {

// The character that begins at `at` of valid UTF-8; moves `at` behind it.
char32_t next_character(std::string_view text, size_t* at);

void append_utf8(char32_t character, std::string* text);

// What str.isspace() of Python is true for.
bool is_space(char32_t character);

// The text without white space at its front, or at its end: str.lstrip() and str.rstrip() of Python.
std::string_view strip_front(std::string_view text);
std::string_view strip_end(std::string_view text);

// Throws kInput, naming the byte: `text` is not UTF-8.
void require_utf8(std::string_view text);

}  // namespace r1v
