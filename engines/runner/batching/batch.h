// Requests that are answered together: what our own loop and a library's loop have in common.
#pragma once

#include <cstdint>
#include <exception>
#include <variant>
#include <vector>

#include "backends/embedded_image.h"
#include "runner/batching/options.h"
#include "runner/timings.h"
#include "sampling/sampling.h"
#include "text/answer.h"

namespace r1v {

// A prompt whose images are encoded.
struct EncodedPrompt {
  std::vector<int64_t> token_ids;  // an image token for each row of an image
  std::vector<EmbeddedImage> images;
  int64_t image_token_id;
};

// A request that is being answered.
class RequestState {
 public:
  virtual ~RequestState() = default;
};

// Requests that join and leave between steps. One thread at a time.
class Batch {
 public:
  // What a step has for a request: its next event, or its error, which ends it.
  struct Outcome {
    RequestState* state;
    std::variant<AnswerEvent, std::exception_ptr> result;
  };

  virtual ~Batch() = default;

  // Begins to answer a request; null while there is no room. `stream` and `timings` are the request's and outlive its
  // state. Throws kInput: the request can never be answered; kUsage: its sampling cannot be used.
  virtual RequestState* admit(const EncodedPrompt& prompt, const Sampling& sampling, AnswerStream* stream,
                              Timings* timings) = 0;
  // Goes one step on. Requests whose outcome is their last are gone after it.
  virtual std::vector<Outcome> step() = 0;
  // Frees what a request holds.
  virtual void drop(RequestState* state) = 0;
  // Drops all requests, and frees what the batch holds itself.
  virtual void clear() = 0;

  virtual bool empty() const = 0;
  // What was counted, and the cache's size now.
  virtual BatchingStats stats() const = 0;
};

}  // namespace r1v
