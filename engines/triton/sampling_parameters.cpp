#include "triton/sampling_parameters.h"

#include "triton/request_fields.h"

namespace r1v::triton {
namespace {

constexpr char kUnusable[] = "sampling_parameters cannot be used";
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxIdDigits = 9;

template <typename Value, typename Given>
void set(Value* field, const std::optional<Given>& given) {
  if (given) *field = static_cast<Value>(*given);
}

std::vector<std::string> read_stops(RequestFields& fields) {
  const Json* given = fields.find("stop");
  if (given == nullptr) return {};
  if (given->is_string()) return {given->get<std::string>()};
  const std::string expected = "a text, or at most " + std::to_string(kMaxStops);
  if (!given->is_array() || given->size() > kMaxStops) fields.refuse("stop", expected, *given);
  std::vector<std::string> stops;
  for (const Json& stop : *given) {
    if (!stop.is_string()) fields.refuse("stop", expected, *given);
    stops.push_back(stop.get<std::string>());
  }
  return stops;
}

std::vector<std::pair<int64_t, double>> read_logit_bias(RequestFields& fields) {
  const Json* given = fields.find("logit_bias");
  if (given == nullptr) return {};
  const char* expected = "token ids -> numbers";
  if (!given->is_object()) fields.refuse("logit_bias", expected, *given);
  std::vector<std::pair<int64_t, double>> biases;
  for (const auto& [id, bias] : given->items()) {
    const bool is_id = !id.empty() && id.size() <= kMaxIdDigits && id.find_first_not_of("0123456789") == id.npos;
    if (!is_id || !bias.is_number()) fields.refuse("logit_bias", expected, *given);
    biases.emplace_back(std::stoll(id), bias.get<double>());
  }
  return biases;
}

void refuse_form(RequestFields& fields) {
  const Json* format = fields.find("response_format");
  const bool has_form =
      fields.find("guided_regex") != nullptr || (format != nullptr && *format != Json{{"type", "text"}});
  if (!has_form) return;
  throw Error(Code::kUsage, "The C++ backend gives answers no form.",
              {"sampling_parameters", "no guided_regex, and no response_format but text", "",
               "deploy with: r1v-export deploy triton --backend python"});
}

}  // namespace

Sampling read_sampling(const std::string& parameters, Sampling sampling) {
  const Json document = parse_request_json(parameters, kUnusable);
  RequestFields fields(document, "", kUnusable);
  set(&sampling.temperature, fields.number("temperature"));
  set(&sampling.top_p, fields.number("top_p"));
  set(&sampling.max_new_tokens, fields.count("max_tokens"));
  if (const auto seed = fields.count("seed", UINT64_MAX)) sampling.seed = seed;
  sampling.stop = read_stops(fields);
  set(&sampling.presence_penalty, fields.number("presence_penalty"));
  set(&sampling.frequency_penalty, fields.number("frequency_penalty"));
  sampling.logit_bias = read_logit_bias(fields);
  set(&sampling.top_k, fields.count("top_k"));
  set(&sampling.min_p, fields.number("min_p"));
  set(&sampling.repetition_penalty, fields.number("repetition_penalty"));
  set(&sampling.ignore_eos, fields.flag("ignore_eos"));
  if (const auto budget = fields.count("thinking_budget")) sampling.max_reasoning_tokens = *budget;
  if (const auto logprobs = fields.count("logprobs")) sampling.logprobs = *logprobs;
  refuse_form(fields);
  fields.require_no_others();
  return sampling;
}

}  // namespace r1v::triton
