#include "triton/status.h"

#include <memory>
#include <new>
#include <sstream>
#include <string>

#include "base/error.h"

namespace r1v::triton {
namespace {

using Owned = std::unique_ptr<TRITONSERVER_Error, decltype(&TRITONSERVER_ErrorDelete)>;

TRITONSERVER_Error_Code triton_code(Code code) {
  switch (code) {
    case Code::kInput:
    case Code::kUsage: return TRITONSERVER_ERROR_INVALID_ARG;
    case Code::kQueueFull: return TRITONSERVER_ERROR_UNAVAILABLE;
    default: return TRITONSERVER_ERROR_INTERNAL;
  }
}

std::string on_one_line(const char* message) {
  std::istringstream words(message);
  std::string line, word;
  while (words >> word) line += (line.empty() ? "" : " ") + word;
  return line;
}

void log(TRITONSERVER_LogLevel level, const std::string& message) {
  const std::string line = on_one_line(message.c_str());
  const Owned unlogged(TRITONSERVER_LogMessage(level, __FILE__, __LINE__, line.c_str()), TRITONSERVER_ErrorDelete);
}

}  // namespace

void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const Owned owned(error, TRITONSERVER_ErrorDelete);
  throw Error(Code::kInternal, "Triton refused a call of the backend.", {"", "", TRITONSERVER_ErrorMessage(error), ""});
}

void log_warning(const std::string& message) { log(TRITONSERVER_LOG_WARN, message); }

void log_info(const std::string& message) { log(TRITONSERVER_LOG_INFO, message); }

void log_failed(TRITONSERVER_Error* error, const char* what) noexcept {
  if (error == nullptr) return;
  const Owned owned(error, TRITONSERVER_ErrorDelete);
  try {
    const std::string text = std::string(what) + ": " + TRITONSERVER_ErrorMessage(error);
    const Owned unlogged(TRITONSERVER_LogMessage(TRITONSERVER_LOG_ERROR, __FILE__, __LINE__, text.c_str()),
                         TRITONSERVER_ErrorDelete);
  } catch (const std::bad_alloc&) {
  }
}

TRITONSERVER_Error* triton_error(std::exception_ptr error) noexcept {
  try {
    std::rethrow_exception(std::move(error));
  } catch (const Error& raised) {
    return TRITONSERVER_ErrorNew(triton_code(raised.code()), on_one_line(raised.what()).c_str());
  } catch (const std::bad_alloc&) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "There is not enough memory.");
  } catch (const std::exception& raised) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, raised.what());
  } catch (...) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "An error without a name.");
  }
}

}  // namespace r1v::triton
