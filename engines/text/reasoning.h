// Reasoning and answer, separated in a stream of text; the tags are searched for in text, not in token ids.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/documents.h"
#include "text/streaming.h"

namespace r1v {

// Text that has become certain, by where it belongs; either may be empty.
struct AnswerPiece {
  std::string reasoning, answer;
};

// Splits text that comes in pieces of any size; the pieces' sizes do not change the result.
// * With `thinking` the text starts inside reasoning; without, in the answer.
// * The start tag counts only at the start of reasoning (dropped) or of the answer; anywhere else it is text.
// * The first end tag inside reasoning ends it; in the answer it is text.
// * White space around reasoning and answer is dropped. Between two stretches of reasoning it is kept.
class ReasoningSplitter {
 public:
  // `stops`: the answer ends before the first of these; reasoning and white space before the answer are not searched.
  ReasoningSplitter(bool thinking, std::vector<std::string> stops, ReasoningTags tags)
      : tags_(std::move(tags)), in_reasoning_(thinking), stop_strings_(std::move(stops)) {}

  // What `text` makes certain.
  AnswerPiece push(std::string_view text);
  // The rest, at the end of the text: an unfinished tag is text, white space at the end is dropped.
  AnswerPiece flush();

  // Whether the next text belongs to the reasoning.
  bool in_reasoning() const { return in_reasoning_; }
  // The answer reached a stop string.
  bool stopped() const { return stop_strings_.stopped(); }

 private:
  // One move: the certain text of the channel it began in, and whether a tag was passed.
  std::pair<std::string, bool> advance();
  std::string reasoning_text(std::string_view certain);

  ReasoningTags tags_;
  bool in_reasoning_;
  bool at_start_ = true, has_reasoning_ = false;
  std::string held_;
  StopStrings stop_strings_;
  TrailingSpace reasoning_end_, answer_end_;
};

}  // namespace r1v
