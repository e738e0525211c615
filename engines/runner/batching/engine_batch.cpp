#include "runner/batching/engine_batch.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "bundle/contract.h"
#include "runner/finite.h"

namespace r1v {
namespace {

using States = std::deque<std::unique_ptr<RowState>>;

// Takes a state out of a list, if it is there.
std::unique_ptr<RowState> take_out(States* states, const RequestState* state) {
  const auto found =
      std::find_if(states->begin(), states->end(), [&](const auto& each) { return each.get() == state; });
  if (found == states->end()) return nullptr;
  std::unique_ptr<RowState> taken = std::move(*found);
  states->erase(found);
  return taken;
}

bool ends(const EngineBatch::Outcome& outcome) {
  const auto* event = std::get_if<AnswerEvent>(&outcome.result);
  return event == nullptr || event->answer.has_value();
}

}  // namespace

RowState::RowState(const EncodedPrompt& prompt, const Sampling& sampling, int64_t max_new_tokens, const Sizes& sizes,
                   AnswerStream* stream, Timings* timings)
    : stream_(*stream),
      timings_(*timings),
      tokens_(prompt.token_ids, prompt.images, prompt.image_token_id, sizes.hidden),
      images_(prompt.images),
      sampler_(sampling, prompt.token_ids, static_cast<size_t>(sizes.vocab)),
      prompt_tokens_(tokens_.size()),
      max_new_tokens_(max_new_tokens),
      image_token_id_(prompt.image_token_id),
      embed_ms_(timings->embed_ms) {}

void RowState::recall() {
  const std::vector<int64_t>& answer = stream_.token_ids();
  for (auto i = static_cast<size_t>(tokens_.size() - prompt_tokens_); i < answer.size(); ++i) tokens_.append(answer[i]);
}

std::vector<float> RowState::image_rows(int64_t start, int64_t stop, int64_t hidden) const {
  const int64_t* ids = tokens_.ids().data();
  int64_t skipped = std::count(ids, ids + start, image_token_id_) * hidden;
  int64_t wanted = std::count(ids + start, ids + stop, image_token_id_) * hidden;
  std::vector<float> rows;
  rows.reserve(static_cast<size_t>(wanted));
  for (const EmbeddedImage& image : images_) {
    const auto size = static_cast<int64_t>(image.embeds->size());
    const int64_t first = std::min(skipped, size), count = std::min(wanted, size - first);
    rows.insert(rows.end(), image.embeds->begin() + first, image.embeds->begin() + first + count);
    skipped -= first;
    wanted -= count;
  }
  return rows;
}

RowState::Choice RowState::choose(const float* logits) {
  const int64_t token_id = sampler_.next(logits, stream_.take_forced());
  return {token_id, sampler_.logprobs(logits, token_id)};
}

AnswerEvent RowState::take(const Choice& choice) {
  std::optional<FinishReason> reason;
  if (stream_.is_stop(choice.token_id)) {
    reason = FinishReason::kStop;
  } else if (stream_.tokens() + 1 >= max_new_tokens_) {
    reason = FinishReason::kLength;
  }
  timings_.decode_steps = stream_.tokens();
  return stream_.push(choice.token_id, reason, choice.logprobs);
}

void RowState::add_time(double step_ms) {
  step_ms -= timings_.embed_ms - embed_ms_;
  embed_ms_ = timings_.embed_ms;
  (stream_.tokens() == 0 ? timings_.prefill_ms : timings_.decode_ms) += step_ms;
}

EngineBatch::EngineBatch(Engine& engine, int64_t max_positions, const BatchingOptions& options)
    : engine_(engine),
      max_positions_(max_positions),
      prefill_chunk_(options.prefill_chunk),
      rows_(engine, {max_positions, options.max_rows, options.cache_bytes, options.keep_prefixes}),
      prefill_room_(options.prefill_chunk) {}

RowState* EngineBatch::admit(const EncodedPrompt& prompt, const Sampling& sampling, AnswerStream* stream,
                             Timings* timings) {
  const auto length = static_cast<int64_t>(prompt.token_ids.size());
  const int64_t max_new_tokens =
      std::min(new_token_budget(length, sampling.max_new_tokens, max_positions_), rows_.room_behind(length));
  const int64_t needed = rows_.first_slots(length, length + max_new_tokens);
  if (!preempted_.empty() || !rows_.has_room(needed)) return nullptr;
  auto state = std::make_unique<RowState>(prompt, sampling, max_new_tokens, engine_.sizes(), stream, timings);
  state->row_ = rows_.acquire(state->tokens_, needed);
  holding_.push_back(std::move(state));
  return holding_.back().get();
}

std::vector<EngineBatch::Outcome> EngineBatch::step() {
  std::vector<Taken> taken;
  double step_ms = 0;
  {
    const Measure measure(&step_ms);
    make_room();
    resume();
    if (RowState* state = next_to_prefill()) {
      prefill(state, &taken);
    } else {
      decode(&taken);
    }
  }
  for (RowState* state : running()) state->add_time(step_ms);
  std::vector<Outcome> outcomes;
  for (const auto& [state, choice] : taken) {
    if (const auto* error = std::get_if<std::exception_ptr>(&choice)) {
      outcomes.push_back({state, *error});
      continue;
    }
    ++counted_.generated_tokens;
    outcomes.push_back({state, state->take(std::get<RowState::Choice>(choice))});
  }
  for (const Outcome& outcome : outcomes) {
    if (ends(outcome)) drop(outcome.state);
  }
  return outcomes;
}

void EngineBatch::drop(RequestState* state) {
  if (take_out(&preempted_, state) != nullptr) return;
  const std::unique_ptr<RowState> held = take_out(&holding_, state);
  if (held != nullptr) rows_.release(held->row_);
}

void EngineBatch::clear() {
  holding_.clear();
  preempted_.clear();
  rows_.clear();
}

BatchingStats EngineBatch::stats() const {
  BatchingStats stats = counted_;
  stats.rows = rows_.rows();
  stats.kept_rows = rows_.kept_rows();
  stats.cache_bytes = rows_.bytes();
  return stats;
}

std::vector<RowState*> EngineBatch::running() const {
  std::vector<RowState*> all;
  for (const States* states : {&holding_, &preempted_}) {
    for (const auto& state : *states) all.push_back(state.get());
  }
  return all;
}

// Lets the youngest request give up its row, until there is another for it.
void EngineBatch::preempt_youngest() {
  std::unique_ptr<RowState> youngest = std::move(holding_.back());
  holding_.pop_back();
  rows_.release(youngest->row_);
  youngest->row_ = nullptr;
  youngest->prefilled_ = false;
  youngest->recall();
  preempted_.push_front(std::move(youngest));
  ++counted_.preempted;
}

// Reserves a slot for the next token of each request that is decoded; the youngest give up theirs for it.
void EngineBatch::make_room() {
  for (size_t i = 0; i < holding_.size(); ++i) {
    RowState* state = holding_[i].get();
    if (!state->prefilled_) continue;
    const int64_t needed = plan_capacity(state->row_->tokens.size() + 1, state->most_tokens());
    while (i < holding_.size() && !rows_.reserve(state->row_, needed)) preempt_youngest();
  }
}

// Gives requests that gave up their rows others, as far as there are.
void EngineBatch::resume() {
  while (!preempted_.empty()) {
    RowState* state = preempted_.front().get();
    const int64_t needed = rows_.first_slots(state->tokens_.size(), state->most_tokens());
    if (!rows_.has_room(needed)) return;
    state->row_ = rows_.acquire(state->tokens_, needed);
    holding_.push_back(std::move(preempted_.front()));
    preempted_.pop_front();
  }
}

void EngineBatch::decode(std::vector<Taken>* taken) {
  std::vector<RowState*> states;
  for (const auto& state : holding_) {
    if (state->prefilled_) states.push_back(state.get());
  }
  if (states.empty()) return;
  std::sort(states.begin(), states.end(),
            [](const RowState* a, const RowState* b) { return a->row_->index < b->row_->index; });
  prefill_room_ = prefill_chunk_;
  const auto count = static_cast<int64_t>(states.size());
  ++counted_.decode_steps;
  counted_.decoded_rows += count;
  std::vector<int64_t> last;
  for (const RowState* state : states) last.push_back(state->stream_.token_ids().back());
  const std::vector<float>* logits = nullptr;
  try {
    embeds_.resize(static_cast<size_t>(count * engine_.sizes().hidden));
    // Without rows of images, an image token that the model chose has the embedding of the table.
    engine_.embed(last.data(), count, 1, nullptr, 0, embeds_.data());
    logits = &rows_.cache().append(embeds_.data(), 1, std::vector<int64_t>(states.size(), 1));
  } catch (...) {
    for (RowState* state : states) taken->push_back({state, std::current_exception()});
    return;
  }
  for (size_t i = 0; i < states.size(); ++i) {
    states[i]->row_->tokens.append(last[i]);
    choose(states[i], logits->data() + i * static_cast<size_t>(engine_.sizes().vocab), taken);
  }
}

// The request whose prompt goes on; null where there is none, or it is the turn of those that are decoded.
//
// The oldest prompt and the one with the fewest tokens left, in turns: neither do short prompts wait for a long one,
// nor does a long one wait for ever, nor do prompts that are alike all wait for the last of them.
RowState* EngineBatch::next_to_prefill() {
  std::vector<RowState*> prefilling;
  for (const auto& state : holding_) {
    if (!state->prefilled_) prefilling.push_back(state.get());
  }
  if (prefilling.empty()) return nullptr;
  const auto left = [](const RowState* state) { return state->tokens_.size() - state->row_->tokens.size(); };
  const auto shortest = std::min_element(prefilling.begin(), prefilling.end(),
                                         [&](const RowState* a, const RowState* b) { return left(a) < left(b); });
  RowState* state = shortest_next_ ? *shortest : prefilling.front();
  rows_.reuse(state->row_, state->tokens_);
  const bool others_wait = prefilling.size() < holding_.size();
  return others_wait && chunk(*state) > prefill_room_ ? nullptr : state;
}

// How many of a request's tokens are prefilled next.
int64_t EngineBatch::chunk(const RowState& state) const {
  return std::min(prefill_chunk_, state.tokens_.size() - state.row_->tokens.size());
}

void EngineBatch::prefill(RowState* state, std::vector<Taken>* taken) {
  const int64_t start = state->row_->tokens.size();
  const int64_t stop = start + chunk(*state);
  prefill_room_ -= stop - start;
  shortest_next_ = !shortest_next_;
  const float* logits = nullptr;
  try {
    logits = append_chunk(state, start, stop);
  } catch (...) {
    taken->push_back({state, std::current_exception()});
    return;
  }
  if (stop < state->tokens_.size()) return;
  this->start(state);
  choose(state, logits, taken);
}

const float* EngineBatch::append_chunk(RowState* state, int64_t start, int64_t stop) {
  {
    const Measure measure(&state->timings_.embed_ms);
    embed(*state, start, stop);
  }
  require_finite(embeds_.data(), embeds_.size(), contract::kEmbed);
  const int64_t count = stop - start;
  const std::vector<float>& logits = rows_.cache().append(embeds_.data(), count, {count}, state->row_->index);
  state->row_->tokens.take(state->tokens_, stop);
  state->computed_ += count;
  return logits.data();
}

void EngineBatch::embed(const RowState& state, int64_t start, int64_t stop) {
  const int64_t* ids = state.tokens_.ids().data();
  const int64_t hidden = engine_.sizes().hidden;
  const int64_t answer = std::min(std::max(start, state.prompt_tokens_), stop);
  embeds_.resize(static_cast<size_t>((stop - start) * hidden));
  if (start < answer) {
    const std::vector<float> images = state.image_rows(start, answer, hidden);
    engine_.embed(ids + start, 1, answer - start, images.data(), static_cast<int64_t>(images.size()) / hidden,
                  embeds_.data());
  }
  if (answer < stop) {
    engine_.embed(ids + answer, 1, stop - answer, nullptr, 0, embeds_.data() + (answer - start) * hidden);
  }
}

// Lets a request whose prompt is in the cache be decoded.
void EngineBatch::start(RowState* state) {
  state->prefilled_ = true;
  rows_.start(state->row_);
  if (state->stream_.tokens() > 0) return;  // it gave up its row, and was counted the first time
  const int64_t tokens = state->tokens_.size();
  // What it computed in a row that it gave up is computed once more, and is not reused.
  const int64_t reused = std::max<int64_t>(0, tokens - state->computed_);
  state->stream_.set_reused_tokens(reused);
  counted_.prompt_tokens += tokens;
  counted_.reused_tokens += reused;
  ++(reused > 0 ? counted_.prefix_hits : counted_.prefix_misses);
}

// Chooses the next token by logits, or finds why there is none.
void EngineBatch::choose(RowState* state, const float* logits, std::vector<Taken>* taken) {
  try {
    taken->push_back({state, state->choose(logits)});
  } catch (...) {
    taken->push_back({state, std::current_exception()});
  }
}

}  // namespace r1v
