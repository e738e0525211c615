// What runs the graphs of one model: contract.VisionEngine, contract.Engine and contract.Decoder of the Python package.
//
// Floating-point arrays are float32 at this boundary, whatever the engine computes in. Shape letters: T tiles, B rows,
// S new tokens, N image tokens, E hidden size, P logit positions, V vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle/contract_document.h"

namespace r1v {

// What the key-value caches of an engine can be.
struct CacheLimits {
  int64_t slot_bytes;               // of one token of one sequence, over all layers
  std::optional<int64_t> max_rows;  // sequences of a decoder, at most; none for any number
  std::optional<int64_t> capacity;  // slots that every sequence has; none where they are as many as asked for
  bool movable = true;  // whether a decoder can copy, swap and resize: else it has one row, opened anew to grow
};

// New tokens of some rows. With S new tokens per row, row b fills the slots cache_write_index[b] ...
// cache_length[b] - 1, where cache_length = cache_write_index + S; its n-th token sees the slots up to its own. Padding
// sits behind a row's valid tokens, counts in cache_length, and is overwritten by the tokens that come next.
struct DecoderStep {
  int64_t rows, seq, positions;
  const float* inputs_embeds;        // [rows, seq, E]
  const int64_t* position_ids;       // [rows, seq]
  const int64_t* cache_write_index;  // [rows]
  const int64_t* cache_length;       // [rows]
  const int64_t* logits_index;       // [rows, positions]; the largest of a row is its last valid token
  int64_t first_row = 0;             // the rows are the cache's from this one on, the others stay as they are
};

// A decoder with a key-value cache for `batch` independent sequences of up to `capacity` tokens. One thread at a time.
class Decoder {
 public:
  virtual ~Decoder() = default;

  virtual int64_t batch() const = 0;
  virtual int64_t capacity() const = 0;

  // Runs the decoder graph and keeps the cache; writes logits [rows, positions, V]. Throws kGraph.
  virtual void step(const DecoderStep& step, float* logits) = 0;

  // Copies the first `length` slots of a row to another.
  virtual void copy_row(int64_t source, int64_t target, int64_t length) = 0;
  // Exchanges the first `length` slots of two rows.
  virtual void swap_rows(int64_t a, int64_t b, int64_t length) = 0;
  // Changes batch and capacity; row b of the new batch keeps its first lengths[b] slots.
  virtual void resize(int64_t batch, int64_t capacity, const std::vector<int64_t>& lengths) = 0;
};

// The graphs of one model that encode images. Any number of threads may call these at a time.
class VisionEngine {
 public:
  virtual ~VisionEngine() = default;

  // Of the library that runs the graphs, in words: "onnxruntime 1.32.0, CPUExecutionProvider".
  virtual std::string description() const = 0;
  // What people should know of how images are encoded, in a line; empty if nothing.
  virtual std::string note() const { return ""; }
  virtual const Sizes& sizes() const = 0;

  // vision_features [T, tokens, features] of pixel_values [T, 3, size, size].
  virtual std::vector<float> vision(const float* pixel_values, int64_t tiles) = 0;
  // image_embeds [T, tokens, E] of vision_features.
  virtual std::vector<float> projector(const std::vector<float>& vision_features, int64_t tiles) = 0;
};

// All graphs of one model, runnable. Any number of threads may call these at a time.
class Engine : public VisionEngine {
 public:
  virtual const std::string& name() const = 0;
  // Writes inputs_embeds [B, S, E] of input_ids [B, S] and image_embeds [N, E].
  virtual void embed(const int64_t* input_ids, int64_t rows, int64_t seq, const float* image_embeds,
                     int64_t image_tokens, float* inputs_embeds) = 0;

  // A decoder for `batch` sequences with an empty cache of `capacity` slots each.
  virtual std::unique_ptr<Decoder> decoder(int64_t batch, int64_t capacity) = 0;
  virtual CacheLimits cache_limits() = 0;
};

}  // namespace r1v
