#include "triton/open_answer.h"

#include <algorithm>

#include "base/json.h"
#include "triton/request_inputs.h"
#include "triton/response.h"
#include "triton/status.h"

namespace r1v::triton {
namespace {

const char* finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kContext: return "context";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kDeadline: return "deadline";
  }
  return "";
}

// As /v1/chat/completions has it.
std::string usage_json(const Answer& answer, int64_t prompt_tokens) {
  const auto completion_tokens = static_cast<int64_t>(answer.token_ids.size());
  return Json{{"prompt_tokens", prompt_tokens},
              {"completion_tokens", completion_tokens},
              {"total_tokens", prompt_tokens + completion_tokens},
              {"prompt_tokens_details", {{"cached_tokens", answer.reused_tokens}}},
              {"completion_tokens_details", {{"reasoning_tokens", answer.reasoning_tokens}}}}
      .dump();
}

std::string logprobs_json(const std::vector<const AnswerEvent*>& events) {
  Json tokens = Json::array();
  for (const AnswerEvent* event : events) {
    if (!event->logprobs) continue;
    Json top = Json::array();
    for (const auto& [id, logprob] : event->logprobs->top) top.push_back({id, logprob});
    tokens.push_back({{"reasoning", event->piece.reasoning},
                      {"text", event->piece.answer},
                      {"logprob", event->logprobs->logprob},
                      {"top", std::move(top)}});
  }
  return Json{{"tokens", std::move(tokens)}}.dump();
}

}  // namespace

OpenAnswer::OpenAnswer(TRITONBACKEND_Request* request) : outputs_(requested_outputs(request)) {
  check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
}

OpenAnswer::~OpenAnswer() {
  log_failed(TRITONBACKEND_ResponseFactoryDelete(factory_), "a response factory was not deleted");
}

bool OpenAnswer::is_cancelled() const noexcept {
  bool cancelled = false;
  log_failed(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &cancelled), "is the request cancelled?");
  return cancelled;
}

bool OpenAnswer::send(const std::vector<JobResult>& results, int64_t prompt_tokens) noexcept {
  try {
    std::vector<const AnswerEvent*> events;
    for (const JobResult& result : results) {
      if (const auto* event = std::get_if<AnswerEvent>(&result)) events.push_back(event);
    }
    if (!events.empty()) send_events(events, prompt_tokens);
    if (const auto* error = std::get_if<std::exception_ptr>(&results.back())) {
      send_error(*error);
    } else if (is_last(results.back())) {
      // By itself, as the Python models send it: clients look for no outputs where they see the flag.
      check(TRITONBACKEND_ResponseFactorySendFlags(factory_, TRITONSERVER_RESPONSE_COMPLETE_FINAL));
    }
    return true;
  } catch (...) {
    send_error(std::current_exception());
    return false;
  }
}

void OpenAnswer::send_error(std::exception_ptr error) noexcept {
  try {
    Response(factory_).send(TRITONSERVER_RESPONSE_COMPLETE_FINAL, triton_error(std::move(error)));
  } catch (...) {
    log_failed(triton_error(std::current_exception()), "an error was not sent");
  }
}

void OpenAnswer::send_events(const std::vector<const AnswerEvent*>& events, int64_t prompt_tokens) {
  std::vector<int64_t> token_ids;
  std::string reasoning, text;
  bool has_logprobs = false;
  for (const AnswerEvent* event : events) {
    if (event->token_id) token_ids.push_back(*event->token_id);
    reasoning += event->piece.reasoning;
    text += event->piece.answer;
    has_logprobs = has_logprobs || event->logprobs;
  }
  Response response(factory_);
  const auto add = [&](const char* name, const auto& value) {
    if (asks_for(name)) response.add(name, value);
  };
  add("token_ids", token_ids);
  add("reasoning_output", reasoning);
  add("text_output", text);
  if (has_logprobs) add("logprobs", logprobs_json(events));
  if (const std::optional<Answer>& answer = events.back()->answer) {
    add("finish_reason", std::string(finish_name(answer->finish_reason)));
    add("usage", usage_json(*answer, prompt_tokens));
  }
  response.send(0);
}

bool OpenAnswer::asks_for(const char* output) const {
  return std::find(outputs_.begin(), outputs_.end(), output) != outputs_.end();
}

}  // namespace r1v::triton
