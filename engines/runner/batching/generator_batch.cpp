#include "runner/batching/generator_batch.h"

#include <algorithm>
#include <optional>

#include "runner/kv_cache.h"

namespace r1v {
namespace {

// How long to wait for tokens before other requests are looked at: new ones, and those that are cancelled.
constexpr std::chrono::milliseconds kMoment{20};

}  // namespace

void OpenState::measure() {
  const Clock::time_point now = Clock::now();
  const double passed_ms = std::chrono::duration<double, std::milli>(now - since_).count();
  (stream_.tokens() == 0 ? timings_.prefill_ms : timings_.decode_ms) += passed_ms;
  since_ = now;
}

RequestState* GeneratorBatch::admit(const EncodedPrompt& prompt, const Sampling& sampling, AnswerStream* stream,
                                    Timings* timings) {
  const auto length = static_cast<int64_t>(prompt.token_ids.size());
  Sampling within = sampling;
  within.max_new_tokens = new_token_budget(length, sampling.max_new_tokens, max_positions_);
  if (static_cast<int64_t>(open_.size()) >= max_open_) return nullptr;
  auto state = std::make_unique<OpenState>(stream, timings);
  open_.reserve(open_.size() + 1);  // before the library has the request
  state->request_ = generator_.start(prompt.token_ids, prompt.images, within, stream->stop_ids());
  open_.push_back(std::move(state));
  counted_.prompt_tokens += length;
  return open_.back().get();
}

std::vector<Batch::Outcome> GeneratorBatch::step() {
  std::vector<Outcome> outcomes;
  for (const Generated& generated : generator_.wait(kMoment)) {
    const auto found =
        std::find_if(open_.begin(), open_.end(), [&](const auto& each) { return each->request_ == generated.request; });
    if (found == open_.end()) continue;  // it was given up
    const bool ended = take(found->get(), generated, &outcomes);
    if (generated.is_last()) {
      open_.erase(found);
    } else if (ended) {  // by a stop string, of which the library knows nothing
      drop(found->get());
    }
  }
  return outcomes;
}

bool GeneratorBatch::take(OpenState* state, const Generated& generated, std::vector<Outcome>* outcomes) {
  if (generated.error) {
    outcomes->push_back({state, generated.error});
    return true;
  }
  state->measure();
  AnswerStream& stream = state->stream_;
  std::vector<std::optional<int64_t>> tokens(generated.token_ids.begin(), generated.token_ids.end());
  counted_.generated_tokens += static_cast<int64_t>(tokens.size());
  if (generated.reason && tokens.empty()) tokens.push_back(std::nullopt);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i]) state->timings_.decode_steps = stream.tokens();
    AnswerEvent event = stream.push(tokens[i], i + 1 == tokens.size() ? generated.reason : std::nullopt);
    const bool ended = event.answer.has_value();
    outcomes->push_back({state, std::move(event)});
    if (ended) return true;
  }
  return false;
}

void GeneratorBatch::drop(RequestState* state) {
  const auto found = std::find_if(open_.begin(), open_.end(), [&](const auto& each) { return each.get() == state; });
  if (found == open_.end()) return;
  generator_.cancel((*found)->request_);
  open_.erase(found);
}

void GeneratorBatch::clear() {
  for (const auto& state : open_) generator_.cancel(state->request_);
  open_.clear();
}

}  // namespace r1v
