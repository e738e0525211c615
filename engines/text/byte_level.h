// The alphabet of byte-level vocabularies: a printable character for each byte, as GPT-2 numbered them.
#pragma once

#include <string>
#include <string_view>

namespace r1v {

// The bytes that a token of such a vocabulary stands for; false if a character of it stands for none.
bool to_bytes(std::string_view token, std::string* bytes);

}  // namespace r1v
