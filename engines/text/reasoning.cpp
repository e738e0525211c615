#include "text/reasoning.h"

#include <tuple>

#include "text/unicode.h"

namespace r1v {

AnswerPiece ReasoningSplitter::push(std::string_view text) {
  held_ += text;
  AnswerPiece piece;
  for (bool switched = true; switched;) {
    const bool was_in_reasoning = in_reasoning_;
    std::string certain;
    std::tie(certain, switched) = advance();
    if (was_in_reasoning) {
      piece.reasoning += reasoning_text(certain);
    } else {
      piece.answer += answer_end_.push(stop_strings_.push(certain));
    }
  }
  return piece;
}

AnswerPiece ReasoningSplitter::flush() {
  const std::string held = std::exchange(held_, "");
  if (in_reasoning_) return {reasoning_text(held), ""};
  std::string rest = stop_strings_.push(at_start_ ? strip_front(held) : held);
  rest += stop_strings_.flush();
  return {"", answer_end_.push(rest)};
}

std::string ReasoningSplitter::reasoning_text(std::string_view certain) {
  std::string text = reasoning_end_.push(has_reasoning_ ? certain : strip_front(certain));
  has_reasoning_ = has_reasoning_ || !text.empty();
  return text;
}

std::pair<std::string, bool> ReasoningSplitter::advance() {
  if (at_start_) {
    const std::string_view body = strip_front(held_);
    if (body.substr(0, tags_.start.size()) == tags_.start) {
      // White space before the tag stays: it parts this reasoning from any before it.
      held_.erase(held_.size() - body.size(), tags_.start.size());
      in_reasoning_ = true;
      return {"", true};
    }
    if (tags_.start.compare(0, body.size(), body) == 0) return {"", false};  // Nothing yet, or what may become the tag.
    at_start_ = false;
    if (!in_reasoning_) held_.erase(0, held_.size() - body.size());
  }
  if (!in_reasoning_) return {std::exchange(held_, ""), false};
  const size_t end = held_.find(tags_.end);
  if (end != std::string::npos) {
    std::string certain = held_.substr(0, end);
    held_.erase(0, end + tags_.end.size());
    in_reasoning_ = false;
    at_start_ = true;
    return {certain, true};
  }
  const size_t safe = held_.size() - partial_tag_length(held_, tags_.end);
  std::string certain = held_.substr(0, safe);
  held_.erase(0, safe);
  return {certain, false};
}

}  // namespace r1v
