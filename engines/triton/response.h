// One response on its way to the server.
#pragma once

#include <string>
#include <vector>

#include "triton/triton_api.h"

namespace r1v::triton {

// Deleted where it is not sent. All throw kInternal: the server refuses; kUsage: the client wants an output in the
// memory of a GPU.
class Response {
 public:
  explicit Response(TRITONBACKEND_ResponseFactory* factory);
  ~Response();
  Response(const Response&) = delete;
  Response& operator=(const Response&) = delete;

  // One string.
  void add(const char* name, const std::string& text);
  void add(const char* name, const std::vector<int64_t>& numbers);
  // Takes `error`, which may be null. `flags`: TRITONSERVER_RESPONSE_COMPLETE_FINAL or 0.
  void send(uint32_t flags, TRITONSERVER_Error* error = nullptr);

 private:
  // Room for the content of an output.
  char* output(const char* name, TRITONSERVER_DataType type, int64_t count, size_t bytes);

  TRITONBACKEND_Response* response_ = nullptr;
};

}  // namespace r1v::triton
