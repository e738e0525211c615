// From a prompt to its tokens, where a library does the decoding: generation.Generator of the Python package. Engine
// (backends/engine.h) is the other way: its decoder is stepped by our own loop, token by token.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "backends/embedded_image.h"
#include "sampling/sampling.h"
#include "text/answer.h"

namespace r1v {

// What came for a request: its next tokens, with the last of them why they are the last, or the error that ended it.
// The token that stopped is among the tokens.
struct Generated {
  uint64_t request;
  std::vector<int64_t> token_ids;
  std::optional<FinishReason> reason = std::nullopt;
  std::exception_ptr error = nullptr;

  bool is_last() const { return reason || error; }
};

// A language model with a loop of its own, which batches the requests that are open at a time. For one thread.
class Generator {
 public:
  virtual ~Generator() = default;

  // Of the library, in words: "tensorrt-llm 1.2.0, executor".
  virtual std::string description() const = 0;
  // Tokens of a prompt and its answer, at most.
  virtual int64_t max_tokens() const = 0;

  // Begins to answer a prompt, and returns the request's number. `images` are those of its image tokens, in order.
  // `sampling.stop` is the caller's, who applies it to the text. Throws kInput: the prompt does not fit; kUsage: tokens
  // cannot be chosen like that here; kGraph: the library refuses the request.
  virtual uint64_t start(const std::vector<int64_t>& token_ids, const std::vector<EmbeddedImage>& images,
                         const Sampling& sampling, const std::vector<int64_t>& stop_ids) = 0;
  // What comes next of any request, waiting for it at most this long. A request that was cancelled may be among them.
  // Throws kGraph: the library fails as a whole.
  virtual std::vector<Generated> wait(std::chrono::milliseconds most) = 0;
  // Gives up a request that has not ended.
  virtual void cancel(uint64_t request) noexcept = 0;
};

}  // namespace r1v
