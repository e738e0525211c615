#include "text/answer.h"

#include <algorithm>
#include <utility>

namespace r1v {

AnswerText::AnswerText(Detokenizer detokenizer, const Stops& stops, std::optional<bool> thinking,
                       const ReasoningTags& tags)
    : detokenizer_(std::move(detokenizer)) {
  const bool everywhere = stops.in_reasoning || !thinking;
  if (everywhere) stop_strings_ = StopStrings(stops.strings);
  if (thinking) splitter_.emplace(*thinking, everywhere ? std::vector<std::string>() : stops.strings, tags);
}

AnswerPiece AnswerText::push(int64_t token_id) {
  std::string text = stop_strings_.push(detokenizer_.push(token_id));
  return keep(splitter_ ? splitter_->push(text) : AnswerPiece{"", std::move(text)});
}

AnswerPiece AnswerText::flush() {
  std::string rest = stop_strings_.push(detokenizer_.flush());
  rest += stop_strings_.flush();
  if (!splitter_) return keep({"", std::move(rest)});
  AnswerPiece certain = splitter_->push(rest);
  const AnswerPiece last = splitter_->flush();
  certain.reasoning += last.reasoning;
  certain.answer += last.answer;
  return keep(std::move(certain));
}

AnswerPiece AnswerText::keep(AnswerPiece piece) {
  whole_.reasoning += piece.reasoning;
  whole_.answer += piece.answer;
  return piece;
}

std::optional<int64_t> AnswerStream::take_forced() {
  if (reasoning_.max_tokens == answer_.reasoning_tokens && text_.in_reasoning() && forced_ == reasoning_.end_tag.size())
    forced_ = 0;
  if (forced_ == reasoning_.end_tag.size()) return std::nullopt;
  return reasoning_.end_tag[forced_++];
}

AnswerEvent AnswerStream::push(std::optional<int64_t> token_id, std::optional<FinishReason> reason,
                               std::optional<TokenLogprobs> logprobs) {
  if (logprobs) answer_.logprobs.push_back(*logprobs);
  AnswerEvent event{token_id, {}, std::nullopt, std::move(logprobs)};
  if (token_id) {
    answer_.reasoning_tokens += text_.in_reasoning() ? 1 : 0;
    answer_.token_ids.push_back(*token_id);
    if (!is_stop(*token_id)) event.piece = text_.push(*token_id);
  }
  if (reason == FinishReason::kLength && tokens() < max_new_tokens_) reason = FinishReason::kContext;
  if (text_.stopped()) reason = FinishReason::kStop;
  if (!reason) return event;
  const AnswerPiece last = text_.flush();
  event.piece.reasoning += last.reasoning;
  event.piece.answer += last.answer;
  answer_.reasoning = text_.whole().reasoning;
  answer_.text = text_.whole().answer;
  answer_.reasoning_complete = !text_.in_reasoning();
  answer_.finish_reason = *reason;
  event.answer = answer_;
  return event;
}

bool AnswerStream::is_stop(int64_t token_id) const {
  return std::find(stop_ids_.begin(), stop_ids_.end(), token_id) != stop_ids_.end();
}

}  // namespace r1v
