// The inputs of a Triton request: r1v_export/deploy/triton/models/python_backend.py.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "triton/triton_api.h"

namespace r1v::triton {

// Reads inputs while the request is not released. All throw kInput, naming the input; kUsage: it lies in GPU memory.
class RequestInputs {
 public:
  explicit RequestInputs(TRITONBACKEND_Request* request);

  // The strings of an input, none if the request omits it.
  std::vector<std::string> texts(const std::string& name) const;
  // The only string of an input; nothing if the request omits it or it is empty. It is UTF-8.
  std::optional<std::string> text(const std::string& name) const;
  bool flag(const std::string& name, bool otherwise) const;

 private:
  std::string bytes(const std::string& name, TRITONBACKEND_Input* input) const;

  std::map<std::string, TRITONBACKEND_Input*> inputs_;
};

// Refuses what a request says besides its inputs: `/generate` makes parameters of fields that are no inputs.
// Throws kInput: it has a parameter that is not Triton's own.
void require_no_parameters(TRITONBACKEND_Request* request);

// The names of the outputs that a request asks for.
std::vector<std::string> requested_outputs(TRITONBACKEND_Request* request);

}  // namespace r1v::triton
