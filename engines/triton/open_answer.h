// One request's answer on its way to the server.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runner/generation.h"
#include "triton/triton_api.h"

namespace r1v::triton {

class OpenAnswer {
 public:
  // Throws kInternal: the server refuses.
  explicit OpenAnswer(TRITONBACKEND_Request* request);
  ~OpenAnswer();
  OpenAnswer(const OpenAnswer&) = delete;
  OpenAnswer& operator=(const OpenAnswer&) = delete;

  // The client went away, or took the request back.
  bool is_cancelled() const noexcept;
  // Sends what has come as one response, and what ends the answer behind it; false where that cannot be: the answer
  // has ended by an error then.
  bool send(const std::vector<JobResult>& results, int64_t prompt_tokens) noexcept;
  // Ends the answer.
  void send_error(std::exception_ptr error) noexcept;

  bool streams = true;  // else one response has the whole answer

  // Of the AnswerSender.
  std::unique_ptr<Generation> generation;
  std::vector<JobResult> gathered;

 private:
  void send_events(const std::vector<const AnswerEvent*>& events, int64_t prompt_tokens);
  bool asks_for(const char* output) const;

  const std::vector<std::string> outputs_;
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
};

}  // namespace r1v::triton
