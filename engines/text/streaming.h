// Text from tokens as they come: whole characters only, and nothing of a stop string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/tokenizer.h"

namespace r1v {

// Bytes in, UTF-8 out; a character whose bytes come in several pieces comes out once it is whole. Bytes that are not
// UTF-8 become U+FFFD, as Python's decoder does it: one for the longest start of a character.
class Utf8Decoder {
 public:
  std::string push(std::string_view bytes);
  // U+FFFD, twice for half a surrogate, if the text ends inside a character, else nothing.
  std::string flush();

 private:
  std::string held_;
};

// Tokens in, text out, without hidden tokens.
class Detokenizer {
 public:
  // `shown`: hidden tokens that are text all the same, as grounding tokens are with grounding.
  explicit Detokenizer(const Tokenizer& tokenizer, std::vector<int64_t> shown = {})
      : tokenizer_(&tokenizer), shown_(std::move(shown)) {}

  // The text that a token completes; empty while a character is unfinished.
  std::string push(int64_t token_id);
  std::string flush() { return decoder_.flush(); }

 private:
  const Tokenizer* tokenizer_;
  std::vector<int64_t> shown_;
  Utf8Decoder decoder_;
};

// Cuts a stream of text before the first stop string, which may arrive in pieces.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops = {}) : stops_(std::move(stops)) {}

  // The part of the text so far that cannot belong to a stop string; nothing once one was whole.
  std::string push(std::string_view text);
  // What is held back at the end.
  std::string flush();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

// Holds back white space until text follows it, so that a text does not end in it.
class TrailingSpace {
 public:
  std::string push(std::string_view text);

 private:
  std::string held_;
};

// Length of the longest end of `text` that begins `tag` but is not the whole of it; 0 if there is none.
size_t partial_tag_length(std::string_view text, std::string_view tag);

}  // namespace r1v
