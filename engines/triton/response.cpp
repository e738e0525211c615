#include "triton/response.h"

#include <cstring>

#include "base/checked.h"
#include "base/error.h"
#include "triton/status.h"

namespace r1v::triton {

Response::Response(TRITONBACKEND_ResponseFactory* factory) {
  check(TRITONBACKEND_ResponseNewFromFactory(&response_, factory));
}

Response::~Response() {
  if (response_ != nullptr) log_failed(TRITONBACKEND_ResponseDelete(response_), "a response was not deleted");
}

void Response::add(const char* name, const std::string& text) {
  const auto size = checked_cast<uint32_t>(text.size(), name);
  char* content = output(name, TRITONSERVER_TYPE_BYTES, 1, sizeof size + text.size());
  std::memcpy(content, &size, sizeof size);
  std::memcpy(content + sizeof size, text.data(), text.size());
}

void Response::add(const char* name, const std::vector<int64_t>& numbers) {
  const size_t bytes = numbers.size() * sizeof(int64_t);
  char* content = output(name, TRITONSERVER_TYPE_INT64, static_cast<int64_t>(numbers.size()), bytes);
  if (bytes > 0) std::memcpy(content, numbers.data(), bytes);
}

void Response::send(uint32_t flags, TRITONSERVER_Error* error) {
  TRITONSERVER_Error* failed = TRITONBACKEND_ResponseSend(response_, flags, error);
  response_ = nullptr;
  check(failed);
}

char* Response::output(const char* name, TRITONSERVER_DataType type, int64_t count, size_t bytes) {
  TRITONBACKEND_Output* output = nullptr;
  void* buffer = nullptr;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_ResponseOutput(response_, &output, name, type, &count, 1));
  check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &memory_id));
  if (memory == TRITONSERVER_MEMORY_GPU) {
    throw Error(Code::kUsage, "An output is wanted in the memory of a GPU.",
                {name, "the server's own memory", "", "take it from the response, or from system shared memory"});
  }
  return static_cast<char*>(buffer);
}

}  // namespace r1v::triton
