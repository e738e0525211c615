#include "triton/request_inputs.h"

#include <cstring>

#include "base/error.h"
#include "base/utf8.h"
#include "triton/status.h"

namespace r1v::triton {

RequestInputs::RequestInputs(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestInputCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    TRITONBACKEND_Input* input = nullptr;
    const char* name = nullptr;
    check(TRITONBACKEND_RequestInputByIndex(request, i, &input));
    check(TRITONBACKEND_InputProperties(input, &name, nullptr, nullptr, nullptr, nullptr, nullptr));
    inputs_[name] = input;
  }
}

std::string RequestInputs::bytes(const std::string& name, TRITONBACKEND_Input* input) const {
  uint64_t size = 0;
  uint32_t buffers = 0;
  check(TRITONBACKEND_InputProperties(input, nullptr, nullptr, nullptr, nullptr, &size, &buffers));
  std::string content;
  content.reserve(size);
  for (uint32_t i = 0; i < buffers; ++i) {
    const void* buffer = nullptr;
    uint64_t bytes = 0;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    check(TRITONBACKEND_InputBuffer(input, i, &buffer, &bytes, &memory, &memory_id));
    if (memory == TRITONSERVER_MEMORY_GPU) {
      throw Error(Code::kUsage, "An input lies in the memory of a GPU.",
                  {name, "the server's own memory", "", "send it with the request, or in system shared memory"});
    }
    content.append(static_cast<const char*>(buffer), bytes);
  }
  return content;
}

std::vector<std::string> RequestInputs::texts(const std::string& name) const {
  const auto found = inputs_.find(name);
  if (found == inputs_.end()) return {};
  const std::string content = bytes(name, found->second);
  // Each begins with its length, four bytes, the lowest first.
  std::vector<std::string> texts;
  for (size_t at = 0; at < content.size();) {
    uint32_t size = 0;
    const bool has_size = content.size() - at >= sizeof size;
    if (has_size) std::memcpy(&size, content.data() + at, sizeof size);
    if (!has_size || content.size() - at - sizeof size < size)
      throw Error(Code::kInput, "A tensor of strings is cut off.", {name, "", "", ""});
    texts.push_back(content.substr(at + sizeof size, size));
    at += sizeof size + size;
  }
  return texts;
}

std::optional<std::string> RequestInputs::text(const std::string& name) const {
  const std::vector<std::string> values = texts(name);
  if (values.size() > 1)
    throw Error(Code::kInput, "An input has more than one string.", {name, "1", std::to_string(values.size()), ""});
  if (values.empty() || values[0].empty()) return std::nullopt;
  if (!is_utf8(values[0])) throw Error(Code::kInput, "A text is not UTF-8.", {name, "", "", ""});
  return values[0];
}

bool RequestInputs::flag(const std::string& name, bool otherwise) const {
  const auto found = inputs_.find(name);
  if (found == inputs_.end()) return otherwise;
  const std::string content = bytes(name, found->second);
  return content.empty() ? otherwise : content[0] != 0;
}

void require_no_parameters(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestParameterCount(request, &count));
  std::string unknown;
  for (uint32_t i = 0; i < count; ++i) {
    const char* key = nullptr;
    TRITONSERVER_ParameterType type{};
    const void* value = nullptr;
    check(TRITONBACKEND_RequestParameter(request, i, &key, &type, &value));
    if (std::strncmp(key, "triton_", 7) != 0) unknown += (unknown.empty() ? "" : ", ") + std::string(key);
  }
  if (unknown.empty()) return;
  throw Error(Code::kInput, "The request has an unknown field.",
              {"", "", unknown, "omit it; how tokens are chosen goes into sampling_parameters, as JSON"});
}

std::vector<std::string> requested_outputs(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  std::vector<std::string> names;
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, i, &name));
    names.push_back(name);
  }
  return names;
}

}  // namespace r1v::triton
