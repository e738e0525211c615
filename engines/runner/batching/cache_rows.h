// Rows of a decoder's cache, shared by requests: which holds what, and how large the cache is.
//
// The rows of requests that are decoded are the first ones, so that a step runs on one contiguous part of the cache. A
// row moves when its request begins to be decoded, when one before it ends, and when the cache shrinks; never between.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backends/engine.h"
#include "runner/batching/token_sequence.h"
#include "runner/kv_cache.h"

namespace r1v {

// Tokens that a prefix must save, to be copied from another row.
inline constexpr int64_t kLeastPrefix = 16;

struct CacheRow {
  int64_t index;          // where it lies in the cache now
  TokenSequence tokens;   // what it holds
  int64_t needed = 0;     // slots that its request may come to take; 0 for a row without a request
  int64_t last_used = 0;  // when its request ended, in requests

  bool owned() const { return needed > 0; }
};

class CacheRows {
 public:
  struct Limits {
    int64_t max_positions;  // slots of a row, at most
    int64_t max_rows;
    int64_t bytes;      // of the whole cache
    bool keep = false;  // what finished rows hold, for requests that begin alike
  };

  // `engine` opens its decoder when the first row is asked for.
  CacheRows(Engine& engine, const Limits& limits) : engine_(engine), limits_(limits) {}

  // The decoder and its cache; there once a row was acquired.
  KVCache& cache() { return *cache_; }
  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t bytes() const;

  // A row with room for `needed` tokens, which may hold the beginning of `tokens`; null while there is none.
  // Throws kInput: no row that large is within the budget.
  CacheRow* acquire(const TokenSequence& tokens, int64_t needed);
  // Copies what another row holds of the beginning of `tokens` and this one does not, where that saves enough.
  void reuse(CacheRow* row, const TokenSequence& tokens);
  // Lets a row be decoded, with the others before it.
  void start(CacheRow* row);
  // Takes a row from its request.
  void release(CacheRow* row);
  // Frees the cache; no request has a row then.
  void clear();

 private:
  using Plan = std::pair<int64_t, int64_t>;  // rows, and slots of each

  std::optional<Plan> plan(int64_t needed);
  int64_t allowed(int64_t capacity) const;
  int64_t round(int64_t tokens) const;
  int64_t row_count(int64_t allowed) const;
  int64_t capacity() const { return cache_ ? cache_->decoder().capacity() : 0; }
  void resize(const Plan& plan);
  void evict(const Plan& plan);
  CacheRow* choose(const TokenSequence& tokens);
  void truncate(CacheRow* row, int64_t length);
  void swap(CacheRow* a, CacheRow* b);

  Engine& engine_;
  const Limits limits_;
  std::optional<CacheLimits> engine_limits_;
  std::unique_ptr<KVCache> cache_;
  std::vector<std::unique_ptr<CacheRow>> rows_;  // by their index
  int64_t decoding_ = 0;                         // rows 0 ... decoding_ - 1 are decoded
  int64_t requests_ = 0;
};

}  // namespace r1v
