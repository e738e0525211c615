// Unicode normalization form C.
#pragma once

#include <string>
#include <string_view>

namespace r1v {

// NFC of valid UTF-8, in time linear in its length but for the sorting of marks that follow one another.
std::string nfc(std::string_view text);

}  // namespace r1v
