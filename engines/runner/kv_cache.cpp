#include "runner/kv_cache.h"

#include <algorithm>

#include "base/error.h"

namespace r1v {

KVCache::KVCache(std::unique_ptr<Decoder> decoder, int64_t vocab)
    : decoder_(std::move(decoder)), vocab_(vocab), lengths_(static_cast<size_t>(decoder_->batch()), 0) {}

const std::vector<float>& KVCache::append(const float* inputs_embeds, int64_t seq,
                                          const std::vector<int64_t>& new_tokens, int64_t first_row) {
  const auto rows = static_cast<int64_t>(new_tokens.size());
  std::vector<int64_t> position_ids, start, end, last_valid;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t length = lengths_.at(static_cast<size_t>(first_row + row));
    if (length + seq > decoder_->capacity()) {
      throw Error(Code::kInput, "The key-value cache is full.",
                  {"decoder", "at most " + std::to_string(decoder_->capacity()) + " tokens",
                   std::to_string(length) + " tokens and " + std::to_string(seq) + " new ones",
                   "use a shorter prompt or fewer new tokens"});
    }
    for (int64_t token = 0; token < seq; ++token) position_ids.push_back(length + token);
    start.push_back(length);
    end.push_back(length + seq);
    last_valid.push_back(std::max<int64_t>(new_tokens[static_cast<size_t>(row)] - 1, 0));
  }
  logits_.resize(static_cast<size_t>(rows * vocab_));
  decoder_->step(
      {rows, seq, 1, inputs_embeds, position_ids.data(), start.data(), end.data(), last_valid.data(), first_row},
      logits_.data());
  for (int64_t row = 0; row < rows; ++row) {
    lengths_[static_cast<size_t>(first_row + row)] += new_tokens[static_cast<size_t>(row)];
  }
  return logits_;
}

void KVCache::truncate(int64_t row, int64_t length) {
  int64_t& held = lengths_.at(static_cast<size_t>(row));
  held = std::min(held, length);
}

void KVCache::copy_row(int64_t source, int64_t target, int64_t length) {
  decoder_->copy_row(source, target, length);
  lengths_.at(static_cast<size_t>(target)) = length;
}

void KVCache::swap_rows(int64_t a, int64_t b) {
  int64_t &first = lengths_.at(static_cast<size_t>(a)), &second = lengths_.at(static_cast<size_t>(b));
  decoder_->swap_rows(a, b, std::max(first, second));
  std::swap(first, second);
}

void KVCache::resize(int64_t rows, int64_t capacity) {
  lengths_.resize(static_cast<size_t>(rows), 0);
  for (int64_t& length : lengths_) length = std::min(length, capacity);
  decoder_->resize(rows, capacity, lengths_);
}

int64_t plan_capacity(int64_t tokens, int64_t max_positions) {
  return std::min((tokens + kCapacityStep - 1) / kCapacityStep * kCapacityStep, max_positions);
}

int64_t new_token_budget(int64_t prompt_tokens, int64_t max_new_tokens, int64_t max_positions) {
  if (prompt_tokens == 0) {
    throw Error(Code::kInput, "The prompt has no tokens.", {"prompt", "at least one token", "", ""});
  }
  if (prompt_tokens < max_positions) return std::min(max_new_tokens, max_positions - prompt_tokens);
  throw Error(
      Code::kInput, "The prompt is too long for this model.",
      {"prompt", "fewer than " + std::to_string(max_positions) + " tokens", std::to_string(prompt_tokens) + " tokens",
       "use fewer or smaller images, fewer tiles per image, or a shorter text"});
}

}  // namespace r1v
