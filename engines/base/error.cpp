#include "base/error.h"

#include <cstdio>

#include "base/utf8.h"

namespace r1v {
namespace {

std::string escaped(unsigned char byte) {
  char text[5];
  std::snprintf(text, sizeof text, "\\x%02x", byte);
  return text;
}

std::string message(const std::string& what, const Details& details) {
  std::string text = show(what);
  const std::pair<const char*, const std::string*> lines[] = {{"where:    ", &details.where},
                                                              {"expected: ", &details.expected},
                                                              {"found:    ", &details.found},
                                                              {"fix:      ", &details.fix}};
  for (const auto& [name, value] : lines) {
    if (!value->empty()) text += std::string("\n  ") + name + show(*value);
  }
  return text;
}

}  // namespace

const char* code_name(Code code) {
  switch (code) {
    case Code::kUsage: return "UsageError";
    case Code::kBundle: return "BundleError";
    case Code::kInput: return "InputError";
    case Code::kGraph: return "GraphError";
    case Code::kCapability: return "CapabilityError";
    case Code::kCancelled: return "CancelledError";
    case Code::kMemory: return "MemoryError";
    case Code::kQueueFull: return "QueueFullError";
    case Code::kInternal: break;
  }
  return "InternalError";
}

Error::Error(Code code, const std::string& what, const Details& details)
    : code_(code), message_(message(what, details)) {}

std::string show(const std::string& text, size_t limit) {
  std::string shown;
  for (size_t at = 0; at < text.size();) {
    if (shown.size() >= limit) return shown + "...";
    const auto byte = static_cast<unsigned char>(text[at]);
    const size_t length = utf8_length(text, at);
    if (length == 0 || byte < 0x20 || byte == 0x7f) {
      shown += byte == '\n' ? "\\n" : escaped(byte);
      at += 1;
    } else {
      shown.append(text, at, length);
      at += length;
    }
  }
  return shown;
}

}  // namespace r1v
