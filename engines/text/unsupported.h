// The error for a tokenizer that the Python package reads and libr1v does not.
#pragma once

#include <string>

#include "base/error.h"

namespace r1v {

[[noreturn]] inline void throw_unsupported(const std::string& where, const std::string& expected,
                                           const std::string& found) {
  throw Error(Code::kBundle, "This tokenizer is not supported in C++.",
              {where, expected, found, "answer with the Python package"});
}

}  // namespace r1v
