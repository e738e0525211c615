// One answer's way from tokens to reasoning and text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sampling/logprobs.h"
#include "text/reasoning.h"
#include "text/streaming.h"

namespace r1v {

// Why an answer ended: a stop token or string, max_new_tokens, no position of the model left, the caller, or its
// deadline. The numbers are those of the C API.
enum class FinishReason { kStop, kLength, kContext, kCancelled, kDeadline };

// The stop strings of an answer, and where they are searched for.
struct Stops {
  std::vector<std::string> strings;
  bool in_reasoning = false;  // in all generated text, tags and white space included
};

class AnswerText {
 public:
  // `thinking`: the prompt has opened reasoning; nothing takes the text as it comes, not split at all.
  AnswerText(Detokenizer detokenizer, const Stops& stops, std::optional<bool> thinking, const ReasoningTags& tags);

  // The reasoning and text that a token makes certain.
  AnswerPiece push(int64_t token_id);
  // The rest, at the end of the answer.
  AnswerPiece flush();

  // A stop string came up.
  bool stopped() const { return stop_strings_.stopped() || (splitter_ && splitter_->stopped()); }
  // Whether the next text belongs to the reasoning.
  bool in_reasoning() const { return splitter_ && splitter_->in_reasoning(); }
  const AnswerPiece& whole() const { return whole_; }

 private:
  AnswerPiece keep(AnswerPiece piece);

  Detokenizer detokenizer_;
  StopStrings stop_strings_;
  std::optional<ReasoningSplitter> splitter_;
  AnswerPiece whole_;
};

// A finished answer; as r1v_export.Answer, without its times.
struct Answer {
  std::string reasoning, text;
  bool reasoning_complete = false;
  std::vector<int64_t> token_ids;  // a stop token included
  FinishReason finish_reason = FinishReason::kCancelled;
  int64_t reasoning_tokens = 0;         // of `token_ids`, those that made the reasoning and its end tag
  int64_t reused_tokens = 0;            // of the prompt, taken from the cache of another request
  std::vector<TokenLogprobs> logprobs;  // of each token, where the sampling asks for them
};

// One step of an answer: what became certain, and the whole answer with the last step only.
struct AnswerEvent {
  std::optional<int64_t> token_id;
  AnswerPiece piece;
  std::optional<Answer> answer;
  std::optional<TokenLogprobs> logprobs = std::nullopt;  // of the token, where the sampling asks for them
};

// Where reasoning ends although the model goes on.
struct ReasoningLimit {
  std::optional<int64_t> max_tokens;
  std::vector<int64_t> end_tag;  // the tokens that end it
};

// One answer while it is made: tokens in, events out.
class AnswerStream {
 public:
  // Args:
  //   stop_ids: tokens that end the answer and are no text.
  //   max_new_tokens: what was asked for; an answer whose length ends it earlier has filled the model's context.
  AnswerStream(AnswerText text, std::vector<int64_t> stop_ids, int64_t max_new_tokens, ReasoningLimit reasoning = {})
      : text_(std::move(text)),
        stop_ids_(std::move(stop_ids)),
        max_new_tokens_(max_new_tokens),
        reasoning_(std::move(reasoning)),
        forced_(reasoning_.end_tag.size()) {}

  // The token that has to come next, whatever the logits say, if there is one: of the end tag, where the reasoning is
  // to end now. To be called once before each token.
  std::optional<int64_t> take_forced();
  void set_reused_tokens(int64_t tokens) { answer_.reused_tokens = tokens; }

  // The event of the next token, or of an end that comes without one. A stop string ends the answer too.
  // `reason`: of the decoder, which knows one limit only and calls it kLength.
  AnswerEvent push(std::optional<int64_t> token_id, std::optional<FinishReason> reason,
                   std::optional<TokenLogprobs> logprobs = std::nullopt);

  bool is_stop(int64_t token_id) const;
  const std::vector<int64_t>& stop_ids() const { return stop_ids_; }
  int64_t tokens() const { return static_cast<int64_t>(answer_.token_ids.size()); }
  const std::vector<int64_t>& token_ids() const { return answer_.token_ids; }

 private:
  AnswerText text_;
  std::vector<int64_t> stop_ids_;
  int64_t max_new_tokens_;
  ReasoningLimit reasoning_;
  size_t forced_;  // how much of the end tag has come, all of it where none has to
  Answer answer_;
};

}  // namespace r1v
