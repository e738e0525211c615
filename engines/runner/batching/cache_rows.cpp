#include "runner/batching/cache_rows.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "base/error.h"

namespace r1v {
namespace {

// A prompt's last token must go through the decoder, for its logits.
int64_t usable_prefix(const CacheRow& row, const TokenSequence& tokens) {
  return std::min(row.tokens.common_prefix(tokens), tokens.size() - 1);
}

}  // namespace

int64_t CacheRows::kept_rows() const {
  return std::count_if(rows_.begin(), rows_.end(),
                       [](const auto& row) { return !row->owned() && row->tokens.size() > 0; });
}

int64_t CacheRows::bytes() const { return engine_limits_ ? rows() * capacity() * engine_limits_->slot_bytes : 0; }

int64_t CacheRows::room_behind(int64_t prompt_tokens) {
  const int64_t room = longest() - prompt_tokens;
  if (room > 0) return room;
  throw Error(
      Code::kInput, "The request is too long for the key-value cache.",
      {"request",
       "fewer than " + std::to_string(longest()) + " tokens, which " + std::to_string(limits_.bytes) + " bytes hold",
       std::to_string(prompt_tokens) + " tokens, " + std::to_string(engine_limits().slot_bytes) + " bytes each",
       "use a shorter prompt, fewer images or tiles, or raise the budget"});
}

int64_t CacheRows::first_slots(int64_t tokens, int64_t most) {
  // A cache that stays where it is cannot grow below its request.
  return engine_limits().movable ? std::min(tokens + kHeadroom, most) : most;
}

CacheRow* CacheRows::acquire(const TokenSequence& tokens, int64_t needed) {
  const std::optional<int64_t> slots = capacity_for(needed, 1);
  if (!slots) throw Error(Code::kInternal, "A row was acquired that there is no room for.");
  resize(std::min(allowed(*slots), wanted_rows(tokens)), *slots);
  CacheRow* row = choose(tokens);
  row->needed = needed;
  truncate(row, usable_prefix(*row, tokens));
  return row;
}

bool CacheRows::reserve(CacheRow* row, int64_t needed) {
  if (needed <= row->needed) return true;
  const std::optional<int64_t> slots = capacity_for(needed, 0);
  if (!slots) return false;
  resize(std::min(allowed(*slots), rows()), *slots);
  row->needed = needed;
  return true;
}

void CacheRows::reuse(CacheRow* row, const TokenSequence& tokens) {
  if (!limits_.keep) return;
  const CacheRow* source = row;
  int64_t most = row->tokens.size();
  for (const auto& each : rows_) {
    const int64_t shared = usable_prefix(*each, tokens);
    if (shared > most) std::tie(most, source) = std::make_tuple(shared, each.get());
  }
  if (most < row->tokens.size() + kLeastPrefix) return;
  cache_->copy_row(source->index, row->index, most);
  row->tokens.take(tokens, most);
}

void CacheRows::start(CacheRow* row) {
  swap(row, rows_[static_cast<size_t>(decoding_)].get());
  ++decoding_;
}

void CacheRows::release(CacheRow* row) {
  if (row->index < decoding_) {
    --decoding_;
    swap(row, rows_[static_cast<size_t>(decoding_)].get());
  }
  row->needed = 0;
  row->last_used = ++requests_;
  if (!limits_.keep) truncate(row, 0);
}

void CacheRows::clear() {
  cache_.reset();
  rows_.clear();
  decoding_ = 0;
}

const CacheLimits& CacheRows::engine_limits() {
  if (!engine_limits_) engine_limits_ = engine_.cache_limits();
  return *engine_limits_;
}

// Slots that a row can have; 0 where there can be none.
int64_t CacheRows::longest() {
  if (const std::optional<int64_t> fixed = engine_limits().capacity) {
    return allowed(*fixed) > 0 ? std::min(*fixed, limits_.max_positions) : 0;
  }
  const int64_t slots = limits_.bytes / engine_limits().slot_bytes;
  return slots >= limits_.max_positions ? limits_.max_positions : slots / kCapacityStep * kCapacityStep;
}

// Capacity to have for a request that needs so many slots, with all others and so many new rows; none where the budget
// is too small for that now.
std::optional<int64_t> CacheRows::capacity_for(int64_t needed, int64_t new_rows) {
  int64_t count = new_rows, most = needed;
  for (const auto& row : rows_) {
    count += row->owned();
    most = std::max(most, row->needed);
  }
  const int64_t least = round(most);
  const int64_t as_is = needed <= capacity() ? capacity() : round(std::max(least, 2 * capacity()));
  for (const int64_t slots : {as_is, least}) {
    if (allowed(slots) >= count) return slots;
  }
  return std::nullopt;
}

// Rows of that capacity, at most.
int64_t CacheRows::allowed(int64_t capacity) {
  const CacheLimits& engine = engine_limits();
  if (engine.capacity && capacity > *engine.capacity) return 0;
  const int64_t within_budget = limits_.bytes / (capacity * engine.slot_bytes);
  const int64_t of_engine = engine.movable ? engine.max_rows.value_or(limits_.max_rows) : 1;
  return std::min({limits_.max_rows, of_engine, within_budget});
}

int64_t CacheRows::round(int64_t tokens) {
  const std::optional<int64_t> fixed = engine_limits().capacity;
  return fixed ? std::max(tokens, *fixed) : plan_capacity(tokens, limits_.max_positions);
}

// Rows to have for a new request: one that it continues or an empty one, else twice as many.
int64_t CacheRows::wanted_rows(const TokenSequence& tokens) const {
  const std::vector<CacheRow*> free = unowned();
  const bool empty = std::any_of(free.begin(), free.end(), [](const CacheRow* row) { return row->tokens.size() == 0; });
  if (empty || continued(tokens) != nullptr) return rows();
  return std::max<int64_t>(1, 2 * rows());
}

void CacheRows::resize(int64_t count, int64_t slots) {
  if (cache_ && !engine_limits().movable && slots != capacity()) clear();  // no request has its row
  if (!cache_) {
    cache_ = std::make_unique<KVCache>(engine_.decoder(count, slots), engine_.sizes().vocab);
  } else if (count != rows() || slots != capacity()) {
    evict(count, slots);
    cache_->resize(count, slots);
  }
  while (rows() < count) rows_.push_back(std::make_unique<CacheRow>(CacheRow{rows(), {}, 0, 0}));
}

// Brings the rows that stay below the new count, and what they hold below the new capacity.
void CacheRows::evict(int64_t count, int64_t slots) {
  const auto worth = [](const CacheRow* row) {
    return std::make_tuple(row->owned(), row->tokens.size() > 0, row->last_used);
  };
  while (rows() > count) {
    std::vector<CacheRow*> all;
    for (const auto& row : rows_) all.push_back(row.get());
    CacheRow* least = *std::min_element(all.begin(), all.end(),
                                        [&](const CacheRow* a, const CacheRow* b) { return worth(a) < worth(b); });
    truncate(least, 0);
    swap(least, rows_.back().get());
    rows_.pop_back();
  }
  for (const auto& row : rows_) truncate(row.get(), std::min(row->tokens.size(), slots));
}

// The row for a new request: one that it continues, else an empty one, else that which was not used longest.
CacheRow* CacheRows::choose(const TokenSequence& tokens) const {
  if (CacheRow* row = continued(tokens)) return row;
  const std::vector<CacheRow*> free = unowned();
  return *std::min_element(free.begin(), free.end(), [](const CacheRow* a, const CacheRow* b) {
    return std::make_tuple(a->tokens.size() > 0, a->last_used, a->index) <
           std::make_tuple(b->tokens.size() > 0, b->last_used, b->index);
  });
}

// The row without a request whose tokens, for the greater part, these begin with; null if there is none.
CacheRow* CacheRows::continued(const TokenSequence& tokens) const {
  CacheRow* closest = nullptr;
  int64_t most = 0;
  for (CacheRow* row : unowned()) {
    const int64_t shared = row->tokens.common_prefix(tokens);
    if (shared > most) std::tie(most, closest) = std::make_tuple(shared, row);
  }
  return most >= kLeastPrefix && 2 * most >= closest->tokens.size() ? closest : nullptr;
}

// The rows without a request.
std::vector<CacheRow*> CacheRows::unowned() const {
  std::vector<CacheRow*> free;
  for (const auto& row : rows_) {
    if (!row->owned()) free.push_back(row.get());
  }
  return free;
}

void CacheRows::truncate(CacheRow* row, int64_t length) {
  row->tokens.truncate(length);
  cache_->truncate(row->index, length);
}

void CacheRows::swap(CacheRow* a, CacheRow* b) {
  if (a == b) return;
  cache_->swap_rows(a->index, b->index);
  std::swap(a->index, b->index);
  std::swap(rows_[static_cast<size_t>(a->index)], rows_[static_cast<size_t>(b->index)]);
}

}  // namespace r1v
