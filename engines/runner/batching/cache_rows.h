// Rows of a decoder's cache, shared by requests: which holds what, and how large the cache is.
//
// The rows of requests that are decoded are the first ones, so that a step runs on one contiguous part of the cache. A
// row moves when its request begins to be decoded, when one before it ends, and when the cache shrinks; never between.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backends/engine.h"
#include "runner/batching/token_sequence.h"
#include "runner/kv_cache.h"

namespace r1v {

// Tokens that a prefix must save, to be copied from another row.
inline constexpr int64_t kLeastPrefix = 16;

// Slots behind its tokens that a row is given, so that it does not have to give way at once.
inline constexpr int64_t kHeadroom = kCapacityStep;

struct CacheRow {
  int64_t index;          // where it lies in the cache now
  TokenSequence tokens;   // what it holds
  int64_t needed = 0;     // slots that are reserved for its request; 0 for a row without a request
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
  // Rows of finished requests that hold something.
  int64_t kept_rows() const;
  int64_t bytes() const;

  // Slots behind a prompt in the largest row that the budget allows; at least 1. Throws kInput: there is none.
  int64_t room_behind(int64_t prompt_tokens);
  // Slots to reserve for a request of so many tokens that may come to `most`.
  int64_t first_slots(int64_t tokens, int64_t most);

  // Whether the budget allows one more row, with room for `needed` tokens. Where no request has a row it does, if
  // room_behind allows that many tokens.
  bool has_room(int64_t needed) { return capacity_for(needed, 1).has_value(); }
  // A row with room for `needed` tokens, which may hold the beginning of `tokens`; has_room says whether there is one.
  CacheRow* acquire(const TokenSequence& tokens, int64_t needed);
  // Lets a request's row have room for `needed` tokens; false while the budget does not allow that. For the only
  // request there is it always does, if room_behind allows that many tokens.
  bool reserve(CacheRow* row, int64_t needed);
  // Copies what another row holds of the beginning of `tokens` and this one does not, where that saves enough.
  void reuse(CacheRow* row, const TokenSequence& tokens);
  // Lets a row be decoded, with the others before it.
  void start(CacheRow* row);
  // Takes a row from its request.
  void release(CacheRow* row);
  // Frees the cache; no request has a row then.
  void clear();

 private:
  const CacheLimits& engine_limits();
  int64_t longest();
  std::optional<int64_t> capacity_for(int64_t needed, int64_t new_rows);
  int64_t allowed(int64_t capacity);
  int64_t round(int64_t tokens);
  int64_t wanted_rows(const TokenSequence& tokens) const;
  int64_t capacity() const { return cache_ ? cache_->decoder().capacity() : 0; }
  void resize(int64_t count, int64_t slots);
  void evict(int64_t count, int64_t slots);
  CacheRow* choose(const TokenSequence& tokens) const;
  CacheRow* continued(const TokenSequence& tokens) const;
  std::vector<CacheRow*> unowned() const;
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
