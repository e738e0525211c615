#include "cli/json_answer.h"

#include <cmath>
#include <string_view>

namespace r1v::cli {
namespace {

const char* name_of(r1v_finish_reason reason) {
  switch (reason) {
    case R1V_FINISH_STOP: return "stop";
    case R1V_FINISH_LENGTH: return "length";
    case R1V_FINISH_CONTEXT: return "context";
    case R1V_FINISH_CANCELLED: return "cancelled";
    case R1V_FINISH_DEADLINE: break;
  }
  return "deadline";
}

double rounded(double milliseconds) { return std::round(milliseconds * 1000) / 1000; }

OrderedJson timings_json(const api::Timings& timings) {
  return {{"queue_ms", rounded(timings.queue_ms)},   {"preprocess_ms", rounded(timings.preprocess_ms)},
          {"vision_ms", rounded(timings.vision_ms)}, {"projector_ms", rounded(timings.projector_ms)},
          {"embed_ms", rounded(timings.embed_ms)},   {"prefill_ms", rounded(timings.prefill_ms)},
          {"decode_ms", rounded(timings.decode_ms)}, {"decode_steps", timings.decode_steps}};
}

OrderedJson logprobs_json(const std::vector<api::TokenLogprobs>& logprobs) {
  OrderedJson list = OrderedJson::array();
  for (const api::TokenLogprobs& token : logprobs) {
    OrderedJson top = OrderedJson::array();
    for (const auto& [id, logprob] : token.top) top.push_back(OrderedJson::array({id, logprob}));
    list.push_back(OrderedJson::array({token.logprob, std::move(top)}));
  }
  return list;
}

// Null for what is off.
OrderedJson optional_json(int64_t value) { return value < 0 ? OrderedJson() : OrderedJson(value); }

OrderedJson sampling_json(const r1v_sampling& sampling) {
  OrderedJson stop = OrderedJson::array(), bias = OrderedJson::object();
  for (size_t i = 0; i < sampling.stop_count; ++i) stop.push_back(sampling.stop[i]);
  for (size_t i = 0; i < sampling.bias_count; ++i) bias[std::to_string(sampling.bias_ids[i])] = sampling.biases[i];
  return {{"max_new_tokens", sampling.max_new_tokens},
          {"temperature", sampling.temperature},
          {"top_p", sampling.top_p},
          {"top_k", sampling.top_k},
          {"repetition_penalty", sampling.repetition_penalty},
          {"seed", sampling.random_seed != 0 ? OrderedJson() : OrderedJson(sampling.seed)},
          {"stop", stop},
          {"stop_in_reasoning", sampling.stop_in_reasoning != 0},
          {"min_p", sampling.min_p},
          {"presence_penalty", sampling.presence_penalty},
          {"frequency_penalty", sampling.frequency_penalty},
          {"logit_bias", bias},
          {"max_reasoning_tokens", optional_json(sampling.max_reasoning_tokens)},
          {"logprobs", optional_json(sampling.logprobs)},
          {"guide", nullptr},
          {"ignore_eos", sampling.ignore_eos != 0}};
}

// The part of an error's message that begins with a name; null where it has none.
OrderedJson detail(const std::string& message, const std::string& name) {
  const std::string head = "\n  " + name + ":";
  const size_t at = message.find(head);
  if (at == std::string::npos) return nullptr;
  const size_t start = message.find_first_not_of(' ', at + head.size());
  return message.substr(start, message.find('\n', start) - start);
}

}  // namespace

OrderedJson answer_json(const api::Answer& answer, const r1v_sampling& sampling) {
  return {{"reasoning", answer.reasoning},
          {"text", answer.text},
          {"reasoning_complete", answer.reasoning_complete},
          {"token_ids", answer.token_ids},
          {"finish_reason", name_of(answer.finish_reason)},
          {"prompt_tokens", answer.prompt_tokens},
          {"reused_tokens", answer.reused_tokens},
          {"timings", timings_json(answer.timings)},
          {"reasoning_tokens", answer.reasoning_tokens},
          {"logprobs", logprobs_json(answer.logprobs)},
          {"sampling", sampling_json(sampling)}};
}

OrderedJson error_json(const api::Error& error, int exit_code) {
  const std::string& message = error.message;
  return {{"error", r1v_status_name(error.status)},
          {"exit_code", exit_code},
          {"what", message.substr(0, message.find('\n'))},
          {"where", detail(message, "where")},
          {"expected", detail(message, "expected")},
          {"found", detail(message, "found")},
          {"fix", detail(message, "fix")}};
}

}  // namespace r1v::cli
