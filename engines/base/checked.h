// Arithmetic on sizes that come from files: an error instead of an overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>

#include "base/error.h"

namespace r1v {

// Whether a + b, or a * b, leaves the range of `Integer`; the result otherwise in `result`.
template <typename Integer>
bool add_overflows(Integer a, Integer b, Integer* result) {
  return __builtin_add_overflow(a, b, result);
}
template <typename Integer>
bool multiply_overflows(Integer a, Integer b, Integer* result) {
  return __builtin_mul_overflow(a, b, result);
}

[[noreturn]] inline void throw_too_large(const std::string& where) {
  throw Error(Code::kInput, "A size is beyond what this machine can count.", {where, "", "", "use a smaller input"});
}

// Product of sizes, such as the dimensions of a tensor. Throws kInput, naming `where`.
inline size_t checked_product(std::initializer_list<size_t> factors, const std::string& where) {
  size_t product = 1;
  for (size_t factor : factors) {
    if (multiply_overflows(product, factor, &product)) throw_too_large(where);
  }
  return product;
}

// Sum of sizes. Throws kInput, naming `where`.
inline size_t checked_sum(std::initializer_list<size_t> terms, const std::string& where) {
  size_t sum = 0;
  for (size_t term : terms) {
    if (add_overflows(sum, term, &sum)) throw_too_large(where);
  }
  return sum;
}

// `value` in another integer type. Throws kInput, naming `where`, if it does not fit.
template <typename To, typename From>
To checked_cast(From value, const std::string& where) {
  static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
  const To converted = static_cast<To>(value);
  if (static_cast<From>(converted) != value || (converted < To{}) != (value < From{})) throw_too_large(where);
  return converted;
}

}  // namespace r1v
