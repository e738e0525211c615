// What tests set and see of the TensorRT-LLM that stands in.
#pragma once

#include <cstdint>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tensorrt_llm/executor/types.h"

namespace r1v::stand_in {

// A request as the executor was given it.
struct SeenRequest {
  std::vector<int32_t> token_ids;
  std::vector<uint64_t> extra_ids;
  std::vector<float> table;
  int32_t max_tokens = 0;
  std::optional<int32_t> end_id, pad_id, top_k;
  std::optional<float> top_p, temperature, repetition_penalty;
  std::optional<uint64_t> seed;
  std::list<std::vector<int32_t>> stop_words;
};

struct Controls {
  std::mutex mutex;  // of all below

  std::string fail_open, fail_enqueue, fail_wait;              // what is thrown, if anything
  std::string fail_request;                                    // the error that ends each request
  std::optional<tensorrt_llm::executor::FinishReason> end_by;  // what ends each request after a token
  std::optional<int32_t> most_tokens;                          // of each request; none for any number

  std::vector<SeenRequest> requests;
  std::vector<uint64_t> cancelled;
  int executors = 0;      // open now
  int most_together = 0;  // requests that one iteration had
  bool reuses_blocks = false;
  std::string worker;    // program of the ranks' processes
  bool plugins = false;  // are registered
};

STAND_IN_API Controls& controls();

}  // namespace r1v::stand_in
