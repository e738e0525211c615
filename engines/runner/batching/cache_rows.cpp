#include "runner/batching/cache_rows.h"

#include <algorithm>
#include <limits>
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

int64_t CacheRows::bytes() const { return engine_limits_ ? rows() * capacity() * engine_limits_->slot_bytes : 0; }

CacheRow* CacheRows::acquire(const TokenSequence& tokens, int64_t needed) {
  const std::optional<Plan> planned = plan(needed);
  if (!planned) return nullptr;
  resize(*planned);
  CacheRow* row = choose(tokens);
  truncate(row, usable_prefix(*row, tokens));
  row->needed = needed;
  return row;
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

// Rows and capacity to have for one more request that needs so many slots; none where the budget is too small for that
// now.
std::optional<CacheRows::Plan> CacheRows::plan(int64_t needed) {
  if (!engine_limits_) engine_limits_ = engine_.cache_limits();
  if (allowed(round(needed)) < 1) {
    throw Error(Code::kInput, "The request is too long for the key-value cache.",
                {"request", "at most " + std::to_string(limits_.bytes) + " bytes",
                 std::to_string(needed) + " tokens of prompt and answer, " +
                     std::to_string(engine_limits_->slot_bytes) + " bytes each",
                 "use a shorter prompt or fewer new tokens, or raise the budget"});
  }
  int64_t owned = 0, longest = needed;
  for (const auto& row : rows_) {
    owned += row->owned();
    longest = std::max(longest, row->needed);
  }
  const int64_t least = round(longest);
  const int64_t as_is = needed <= capacity() ? capacity() : round(std::max(least, 2 * capacity()));
  for (const int64_t slots : {as_is, least}) {
    const int64_t most = allowed(slots);
    if (most > owned) return Plan{row_count(most), slots};
  }
  return std::nullopt;
}

// Rows of that capacity, at most.
int64_t CacheRows::allowed(int64_t capacity) const {
  if (engine_limits_->capacity && capacity > *engine_limits_->capacity) return 0;
  const int64_t within_budget = limits_.bytes / (capacity * engine_limits_->slot_bytes);
  const int64_t any = std::numeric_limits<int64_t>::max();
  const int64_t of_engine = engine_limits_->movable ? engine_limits_->max_rows.value_or(any) : 1;
  return std::min({limits_.max_rows, of_engine, within_budget});
}

int64_t CacheRows::round(int64_t tokens) const {
  const std::optional<int64_t> fixed = engine_limits_->capacity;
  return fixed ? std::max(tokens, *fixed) : plan_capacity(tokens, limits_.max_positions);
}

// Rows to have, one of them for a new request: an empty one there is, else twice as many.
int64_t CacheRows::row_count(int64_t allowed) const {
  const bool empty =
      std::any_of(rows_.begin(), rows_.end(), [](const auto& row) { return !row->owned() && row->tokens.size() == 0; });
  return std::min(allowed, empty ? rows() : std::max<int64_t>(1, 2 * rows()));
}

void CacheRows::resize(const Plan& plan) {
  const auto [count, slots] = plan;
  if (cache_ && !engine_limits_->movable && slots != capacity()) clear();  // no request has its row
  if (!cache_) {
    cache_ = std::make_unique<KVCache>(engine_.decoder(count, slots), engine_.sizes().vocab);
  } else if (count != rows() || slots != capacity()) {
    evict(plan);
    cache_->resize(count, slots);
  }
  while (rows() < count) rows_.push_back(std::make_unique<CacheRow>(CacheRow{rows(), {}, 0, 0}));
}

// Brings the rows that stay below the new count, and what they hold below the new capacity.
void CacheRows::evict(const Plan& plan) {
  const auto [count, slots] = plan;
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
CacheRow* CacheRows::choose(const TokenSequence& tokens) {
  std::vector<CacheRow*> free;
  for (const auto& row : rows_) {
    if (!row->owned()) free.push_back(row.get());
  }
  CacheRow* closest = *std::max_element(free.begin(), free.end(), [&](const CacheRow* a, const CacheRow* b) {
    return a->tokens.common_prefix(tokens) < b->tokens.common_prefix(tokens);
  });
  const int64_t shared = closest->tokens.common_prefix(tokens);
  if (shared >= kLeastPrefix && 2 * shared >= closest->tokens.size()) return closest;
  return *std::min_element(free.begin(), free.end(), [](const CacheRow* a, const CacheRow* b) {
    return std::make_tuple(a->tokens.size() > 0, a->last_used, a->index) <
           std::make_tuple(b->tokens.size() > 0, b->last_used, b->index);
  });
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
