// Hexadecimal digits.
#pragma once

namespace r1v {

// The number of a digit of either case; -1 for any other character.
inline int hex_digit(char character) {
  if (character >= '0' && character <= '9') return character - '0';
  if (character >= 'a' && character <= 'f') return character - 'a' + 10;
  if (character >= 'A' && character <= 'F') return character - 'A' + 10;
  return -1;
}

}  // namespace r1v
