// Every error that a caller can meet, as r1v_export/errors.py has them.
#pragma once

#include <exception>
#include <string>

namespace r1v {

// What kind of error; the numbers are those of the C API.
enum class Code {
  kUsage = 1,       // a call or an option that cannot be
  kBundle = 2,      // a bundle that is incomplete, altered, or of another schema version
  kInput = 3,       // an image, prompt or text that cannot be used
  kGraph = 4,       // a graph that fails, or gives numbers that are not finite
  kCapability = 5,  // what this machine or this build lacks
  kCancelled = 6,   // the caller asked for the end
  kMemory = 7,      // memory that there is not
  kInternal = 8,    // an error of libr1v itself
  kQueueFull = 9,   // requests that wait already, as many as may
};

// Name of a code in the words of the Python package, such as "BundleError".
const char* code_name(Code code);

// What an error says besides its first sentence; what is empty is omitted.
struct Details {
  std::string where;     // file, tensor, field or stage it happened in
  std::string expected;  // what the program needed
  std::string found;     // what it got instead
  std::string fix;       // what to do next
};

class Error : public std::exception {
 public:
  // `what` is one sentence. The texts may come from outside: they are shown on one line, escaped and short.
  Error(Code code, const std::string& what, const Details& details = {});

  Code code() const { return code_; }
  // The sentence, and a line "  where:    ..." for each detail.
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  Code code_;
  std::string message_;
};

// A text from outside on one line: control characters and bytes that are not UTF-8 escaped, cut after `limit` bytes.
std::string show(const std::string& text, size_t limit = 900);

}  // namespace r1v
