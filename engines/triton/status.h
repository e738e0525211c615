// Errors of Triton's C API as exceptions, and ours as Triton's.
#pragma once

#include <exception>
#include <string>

#include "triton/triton_api.h"

namespace r1v::triton {

// Throws kInternal with the server's message, where there is one; frees it.
void check(TRITONSERVER_Error* error);
// Writes a warning, or what is good to know, into the server's log, on one line.
void log_warning(const std::string& message);
void log_info(const std::string& message);
// The same as `check` where nothing can be done: logs it.
void log_failed(TRITONSERVER_Error* error, const char* what) noexcept;

// An error of ours as the server's, with the code that says whose it is, on one line.
TRITONSERVER_Error* triton_error(std::exception_ptr error) noexcept;

// Runs an entry point's work; null where it does not throw.
template <typename Call>
TRITONSERVER_Error* guarded(const Call& call) noexcept {
  try {
    call();
    return nullptr;
  } catch (...) {
    return triton_error(std::current_exception());
  }
}

}  // namespace r1v::triton
