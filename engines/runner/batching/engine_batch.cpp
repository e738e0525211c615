#include "runner/batching/engine_batch.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "bundle/contract.h"
#include "runner/finite.h"

namespace r1v {
namespace {

template <typename List>
bool erase(List* list, RowState* state) {
  const auto found = std::find(list->begin(), list->end(), state);
  if (found == list->end()) return false;
  list->erase(found);
  return true;
}

bool ends(const EngineBatch::Outcome& outcome) {
  const auto* event = std::get_if<AnswerEvent>(&outcome.result);
  return event == nullptr || event->answer.has_value();
}

}  // namespace

RowState::RowState(const EncodedPrompt& prompt, TokenSequence tokens, CacheRow* row, const Sampling& sampling,
                   int64_t max_new_tokens, int64_t vocab, AnswerStream* stream, Timings* timings)
    : stream_(*stream),
      timings_(*timings),
      tokens_(std::move(tokens)),
      row_(row),
      sampler_(sampling, prompt.token_ids, static_cast<size_t>(vocab)),
      max_new_tokens_(max_new_tokens),
      image_token_id_(prompt.image_token_id),
      embed_ms_(timings->embed_ms) {
  for (const EmbeddedImage& image : prompt.images) {
    image_rows_.insert(image_rows_.end(), image.embeds->begin(), image.embeds->end());
  }
}

EngineBatch::EngineBatch(Engine& engine, int64_t max_positions, const BatchingOptions& options)
    : engine_(engine),
      max_positions_(max_positions),
      prefill_chunk_(options.prefill_chunk),
      rows_(engine, {max_positions, options.max_rows, options.cache_bytes, options.keep_prefixes}) {}

RowState* EngineBatch::admit(const EncodedPrompt& prompt, const Sampling& sampling, AnswerStream* stream,
                             Timings* timings) {
  const auto length = static_cast<int64_t>(prompt.token_ids.size());
  if (length == 0) throw Error(Code::kInput, "The prompt has no tokens.", {"prompt", "at least one token", "", ""});
  const int64_t budget = new_token_budget(length, sampling.max_new_tokens, max_positions_);
  TokenSequence tokens(prompt.token_ids, prompt.images, prompt.image_token_id, engine_.sizes().hidden);
  CacheRow* row = rows_.acquire(tokens, length + budget);
  if (row == nullptr) return nullptr;
  std::unique_ptr<RowState> state;
  try {
    state = std::make_unique<RowState>(prompt, std::move(tokens), row, sampling, budget, engine_.sizes().vocab, stream,
                                       timings);
  } catch (...) {
    rows_.release(row);
    throw;
  }
  prefilling_.push_back(state.get());
  states_.push_back(std::move(state));
  return states_.back().get();
}

std::vector<EngineBatch::Outcome> EngineBatch::step() {
  std::vector<RowState*> running(decoding_);
  running.insert(running.end(), prefilling_.begin(), prefilling_.end());
  std::vector<Outcome> outcomes;
  double step_ms = 0;
  {
    const Measure measure(&step_ms);
    decode(&outcomes);
    prefill(&outcomes);
  }
  add_time(step_ms, running);
  for (const Outcome& outcome : outcomes) {
    if (ends(outcome)) drop(outcome.state);
  }
  return outcomes;
}

void EngineBatch::drop(RowState* state) {
  if (!erase(&decoding_, state) && !erase(&prefilling_, state)) return;
  rows_.release(state->row_);
  states_.erase(std::find_if(states_.begin(), states_.end(), [&](const auto& each) { return each.get() == state; }));
}

void EngineBatch::clear() {
  decoding_.clear();
  prefilling_.clear();
  states_.clear();
  rows_.clear();
}

BatchingStats EngineBatch::stats() const {
  BatchingStats stats = counted_;
  stats.rows = rows_.rows();
  stats.cache_bytes = rows_.bytes();
  return stats;
}

void EngineBatch::decode(std::vector<Outcome>* outcomes) {
  if (decoding_.empty()) return;
  std::vector<RowState*> states(decoding_);
  std::sort(states.begin(), states.end(),
            [](const RowState* a, const RowState* b) { return a->row_->index < b->row_->index; });
  const auto count = static_cast<int64_t>(states.size());
  const int64_t vocab = engine_.sizes().vocab;
  ++counted_.decode_steps;
  counted_.decoded_rows += count;
  std::vector<int64_t> last;
  for (const RowState* state : states) last.push_back(state->last_token_);
  const std::vector<float>* logits = nullptr;
  try {
    embeds_.resize(static_cast<size_t>(count * engine_.sizes().hidden));
    // Without rows of images, an image token that the model chose has the embedding of the table.
    engine_.embed(last.data(), count, 1, nullptr, 0, embeds_.data());
    logits = &rows_.cache().append(embeds_.data(), 1, std::vector<int64_t>(states.size(), 1));
  } catch (...) {
    for (RowState* state : states) outcomes->push_back({state, std::current_exception()});
    return;
  }
  for (size_t i = 0; i < states.size(); ++i) {
    states[i]->row_->tokens.append(last[i]);
    take(states[i], logits->data() + static_cast<int64_t>(i) * vocab, outcomes);
  }
}

void EngineBatch::prefill(std::vector<Outcome>* outcomes) {
  int64_t room = prefill_chunk_;
  while (!prefilling_.empty()) {
    RowState* state = prefilling_.front();
    rows_.reuse(state->row_, state->tokens_);
    const int64_t start = state->row_->tokens.size();
    const int64_t stop = std::min(start + prefill_chunk_, state->tokens_.size());
    if (stop - start > room) return;
    room -= stop - start;
    // To the back of the queue: prompts take turns.
    prefilling_.pop_front();
    prefilling_.push_back(state);
    const float* logits = nullptr;
    try {
      logits = append_chunk(state, start, stop);
    } catch (...) {
      outcomes->push_back({state, std::current_exception()});
      return;
    }
    if (stop < state->tokens_.size()) continue;
    this->start(state);
    take(state, logits, outcomes);
  }
}

const float* EngineBatch::append_chunk(RowState* state, int64_t start, int64_t stop) {
  const int64_t* ids = state->tokens_.ids().data();
  const int64_t image_token = state->image_token_id_;
  const int64_t before = std::count(ids, ids + start, image_token);
  const int64_t images = std::count(ids + start, ids + stop, image_token);
  const int64_t hidden = engine_.sizes().hidden, count = stop - start;
  embeds_.resize(static_cast<size_t>(count * hidden));
  {
    const Measure measure(&state->timings_.embed_ms);
    engine_.embed(ids + start, 1, count, state->image_rows_.data() + before * hidden, images, embeds_.data());
  }
  require_finite(embeds_, contract::kEmbed);
  const std::vector<float>& logits = rows_.cache().append(embeds_.data(), count, {count}, state->row_->index);
  state->row_->tokens.take(state->tokens_, stop);
  state->computed_ += count;
  return logits.data();
}

void EngineBatch::start(RowState* state) {
  erase(&prefilling_, state);
  decoding_.push_back(state);
  rows_.start(state->row_);
  state->image_rows_ = {};
  counted_.prompt_tokens += state->tokens_.size();
  const int64_t reused = state->tokens_.size() - state->computed_;
  state->stream_.set_reused_tokens(reused);
  counted_.reused_tokens += reused;
}

void EngineBatch::take(RowState* state, const float* logits, std::vector<Outcome>* outcomes) {
  try {
    const int64_t token_id = state->sampler_.next(logits, state->stream_.take_forced());
    std::optional<FinishReason> reason;
    if (state->stream_.is_stop(token_id)) {
      reason = FinishReason::kStop;
    } else if (state->stream_.tokens() + 1 >= state->max_new_tokens_) {
      reason = FinishReason::kLength;
    }
    state->last_token_ = token_id;
    ++counted_.generated_tokens;
    outcomes->push_back({state, state->stream_.push(token_id, reason, state->sampler_.logprobs(logits, token_id))});
  } catch (...) {
    outcomes->push_back({state, std::current_exception()});
  }
}

// A step's time, of which embedding the prompt is a stage of its own.
void EngineBatch::add_time(double step_ms, const std::vector<RowState*>& running) {
  for (RowState* state : running) {
    Timings& timings = state->timings_;
    const double rest = step_ms - (timings.embed_ms - state->embed_ms_);
    state->embed_ms_ = timings.embed_ms;
    const bool first = state->stream_.tokens() <= 1;
    (first ? timings.prefill_ms : timings.decode_ms) += rest;
    if (!first) ++timings.decode_steps;
  }
}

}  // namespace r1v
