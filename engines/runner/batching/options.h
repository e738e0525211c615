// Limits of the batching loop, and what it has counted.
#pragma once

#include <cstdint>

namespace r1v {

struct BatchingOptions {
  int64_t max_rows = 16;                           // requests that are decoded together
  int64_t max_queued = 256;                        // requests that wait for a row; one more is refused
  int64_t cache_bytes = int64_t{2} << 30;          // of the key-value cache: its rows times the slots of each
  int64_t image_cache_bytes = int64_t{256} << 20;  // of embeddings that are kept for images shown again
  int64_t prefill_chunk = 512;                     // prompt tokens of a step, at most: bounds the wait of all others
  bool keep_prefixes = true;  // keep finished rows for requests that begin alike, while there is room
};

// One moment. What is not of now is counted since the start.
struct BatchingStats {
  int64_t queued = 0, running = 0;    // now
  int64_t ready = 0;                  // of the queued, those that wait for nothing but a row
  int64_t rows = 0, cache_bytes = 0;  // of the key-value cache now
  int64_t kept_rows = 0;              // of these rows, those of finished requests that are kept for their prefixes
  int64_t refused = 0, finished = 0, failed = 0;
  int64_t prompt_tokens = 0;  // of all prompts that were given a row
  int64_t reused_tokens = 0;  // of these, taken from the cache of another request
  int64_t generated_tokens = 0;
  int64_t prefix_hits = 0, prefix_misses = 0;  // requests that found a common prefix, and that found none
  int64_t preempted = 0;     // times that a request gave up its row for an older one, and was computed again
  int64_t decode_steps = 0;  // steps that decoded any row
  int64_t decoded_rows = 0;  // rows of all these steps together
  int64_t image_hits = 0, image_misses = 0;  // images whose embeddings were kept, and that were encoded
  int64_t image_cache_bytes = 0;             // taken now by kept embeddings
  int64_t vision_runs = 0;                   // of the vision graph
  int64_t vision_tiles = 0;                  // tiles of all these runs together
};

}  // namespace r1v
