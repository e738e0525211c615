// C++17 on top of r1v.h: owners, values, and results that hold a value or an error. Header only; throws nothing but
// what the standard library throws when there is no memory.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "r1v/r1v.h"

namespace r1v::api {

struct Error {
  r1v_status status;
  std::string message;  // what, where, expected, found and fix
};

// A value, or the error that there is none.
template <typename T>
class Result {
 public:
  Result(T value) : content_(std::move(value)) {}
  Result(Error error) : content_(std::move(error)) {}

  explicit operator bool() const { return std::holds_alternative<T>(content_); }
  // Of a result that has one.
  T& operator*() { return std::get<T>(content_); }
  T* operator->() { return &std::get<T>(content_); }
  const Error& error() const { return std::get<Error>(content_); }

 private:
  std::variant<T, Error> content_;
};

inline Error last_error(r1v_status status) { return {status, r1v_error_message()}; }

struct Image {
  std::string path;           // a file, or
  std::vector<uint8_t> data;  // the bytes of one, or where width is not 0, its RGB pixels
  int32_t width = 0, height = 0;
};

struct Turn {
  std::string role, text;
  std::vector<Image> images;
};

// How likely the model held a token to be, and the likeliest ones with their ids, the likeliest first.
struct TokenLogprobs {
  double logprob;
  std::vector<std::pair<int64_t, double>> top;
};

// Wall-clock time of a request by stage.
struct Timings {
  double queue_ms = 0, preprocess_ms = 0, vision_ms = 0, projector_ms = 0, embed_ms = 0, prefill_ms = 0, decode_ms = 0;
  int64_t decode_steps = 0;
};

struct Answer {
  std::string reasoning, text;
  bool reasoning_complete = false;
  r1v_finish_reason finish_reason = R1V_FINISH_CANCELLED;
  std::vector<int64_t> token_ids;
  int64_t prompt_tokens = 0;
  int64_t reused_tokens = 0;            // of the prompt, taken from the cache of another request
  int64_t reasoning_tokens = 0;         // of `token_ids`, those that made the reasoning and its end tag
  std::vector<TokenLogprobs> logprobs;  // of each token, where the sampling asks for them
  Timings timings;
};

// Texts that became certain with a token; they live until the next one.
struct Event {
  std::optional<int64_t> token_id;
  std::string_view reasoning, text;
  bool finished = false;
  std::optional<TokenLogprobs> logprobs = std::nullopt;  // of the token, where the sampling asks for them
};

// Of `count` tokens, by the arrays of r1v.h.
inline std::vector<TokenLogprobs> token_logprobs(const double* logprobs, const int64_t* top_ids,
                                                 const double* top_logprobs, size_t top_count, size_t count) {
  std::vector<TokenLogprobs> tokens;
  for (size_t token = 0; logprobs != nullptr && token < count; ++token) {
    tokens.push_back({logprobs[token], {}});
    for (size_t i = token * top_count; i < (token + 1) * top_count; ++i)
      tokens.back().top.emplace_back(top_ids[i], top_logprobs[i]);
  }
  return tokens;
}

struct RequestOptions {
  bool think = true, grounding = false, raw = false;
  std::optional<r1v_sampling> sampling;  // the checkpoint's if there is none; its lists must live until the start
  std::string client;                    // whose turn it is among waiting clients
  int64_t timeout_ms = 0;                // the answer ends then with what it has; 0 for never
};

class Request {
 public:
  explicit Request(r1v_request* request) : request_(request, r1v_request_free) {}

  Result<Event> next() {
    r1v_event event;
    r1v_event_init(&event, sizeof event);
    if (const r1v_status status = r1v_request_next(request_.get(), &event)) return last_error(status);
    Event next{
        std::nullopt, {event.reasoning, event.reasoning_size}, {event.text, event.text_size}, event.finished != 0};
    if (event.token_id >= 0) next.token_id = event.token_id;
    if (event.logprob != nullptr)
      next.logprobs = token_logprobs(event.logprob, event.top_ids, event.top_logprobs, event.top_count, 1).front();
    return next;
  }

  // From any thread, while the request lives.
  void cancel() { r1v_request_cancel(request_.get()); }

  // The whole answer as r1v.h has it, with its times; what it points to lives as long as the request.
  Result<r1v_answer> measured() {
    r1v_answer answer;
    r1v_answer_init(&answer, sizeof answer);
    if (const r1v_status status = r1v_request_answer(request_.get(), &answer)) return last_error(status);
    return answer;
  }

  Result<Answer> answer() {
    Result<r1v_answer> answer = measured();
    if (!answer) return answer.error();
    return Answer{
        answer->reasoning,
        answer->text,
        answer->reasoning_complete != 0,
        answer->finish_reason,
        {answer->token_ids, answer->token_ids + answer->token_count},
        answer->prompt_tokens,
        answer->reused_tokens,
        answer->reasoning_tokens,
        token_logprobs(answer->logprobs, answer->top_ids, answer->top_logprobs, answer->top_count, answer->token_count),
        {answer->queue_ms, answer->preprocess_ms, answer->vision_ms, answer->projector_ms, answer->embed_ms,
         answer->prefill_ms, answer->decode_ms, answer->decode_steps}};
  }

 private:
  std::unique_ptr<r1v_request, void (*)(r1v_request*)> request_;
};

class Engine {
 public:
  // `options`: set by r1v_engine_options_init first.
  static Result<Engine> open(const std::string& bundle, const r1v_engine_options* options = nullptr) {
    r1v_engine* engine = nullptr;
    if (const r1v_status status = r1v_engine_open(bundle.c_str(), options, &engine)) return last_error(status);
    return Engine(engine);
  }

  std::string description() const { return r1v_engine_description(engine_.get()); }
  std::string note() const { return r1v_engine_note(engine_.get()); }
  r1v_engine* handle() const { return engine_.get(); }

  Result<r1v_sampling> default_sampling() const {
    r1v_sampling sampling;
    if (const r1v_status status = r1v_sampling_init(engine_.get(), &sampling, sizeof sampling))
      return last_error(status);
    return sampling;
  }

  Result<Request> start(const std::vector<Turn>& turns, const RequestOptions& options = {}) {
    std::vector<std::vector<r1v_image>> images;
    std::vector<r1v_turn> list;
    images.reserve(turns.size());  // Turns point into it.
    for (const Turn& turn : turns) {
      images.push_back(c_images(turn.images));
      r1v_turn each;
      r1v_turn_init(&each, sizeof each);
      each.role = turn.role.c_str();
      each.text = turn.text.c_str();
      each.images = images.back().data();
      each.image_count = images.back().size();
      list.push_back(each);
    }
    r1v_request_options request;
    r1v_request_options_init(&request, sizeof request);
    request.turns = list.data();
    request.turn_count = list.size();
    request.sampling = options.sampling ? &*options.sampling : nullptr;
    request.think = options.think;
    request.grounding = options.grounding;
    request.raw = options.raw;
    request.client = options.client.empty() ? nullptr : options.client.c_str();
    request.timeout_ms = options.timeout_ms;
    r1v_request* started = nullptr;
    if (const r1v_status status = r1v_request_start(engine_.get(), &request, &started)) return last_error(status);
    return Request(started);
  }

  // The answer to a conversation. `on_event` may show it while it is made.
  Result<Answer> answer(const std::vector<Turn>& turns, const RequestOptions& options = {},
                        const std::function<void(const Event&)>& on_event = {}) {
    Result<Request> request = start(turns, options);
    if (!request) return request.error();
    for (bool finished = false; !finished;) {
      Result<Event> event = request->next();
      if (!event) return event.error();
      if (on_event) on_event(*event);
      finished = event->finished;
    }
    return request->answer();
  }

 private:
  explicit Engine(r1v_engine* engine) : engine_(engine, r1v_engine_free) {}

  static std::vector<r1v_image> c_images(const std::vector<Image>& images) {
    static const uint8_t nothing = 0;  // An image without bytes is not an image that is missing.
    std::vector<r1v_image> list;
    for (const Image& image : images) {
      r1v_image each;
      r1v_image_init(&each, sizeof each);
      each.path = image.path.empty() ? nullptr : image.path.c_str();
      each.data = image.data.empty() ? &nothing : image.data.data();
      each.size = image.data.size();
      each.width = image.width;
      each.height = image.height;
      list.push_back(each);
    }
    return list;
  }

  std::unique_ptr<r1v_engine, void (*)(r1v_engine*)> engine_;
};

}  // namespace r1v::api
