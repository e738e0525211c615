// The message of the Error that a call throws.
#pragma once

#include <string>

#include "base/error.h"

namespace r1v {

template <typename Call>
std::string error_message(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace r1v
