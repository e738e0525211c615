#include "text/prompt.h"

#include <utility>

#include "base/error.h"
#include "text/turns.h"
#include "text/unicode.h"

namespace r1v {
namespace {

// Text that touches other text is tokenized together with it.
class IdWriter {
 public:
  explicit IdWriter(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void text(std::string_view piece) { held_ += piece; }

  void token(int64_t id, int64_t count = 1) {
    tokenize();
    ids_.insert(ids_.end(), static_cast<size_t>(count), id);
  }

  void pieces(const Pieces& pieces) {
    for (const PromptPiece& piece : pieces) {
      if (piece.is_token) {
        token(piece.id);
      } else {
        text(piece.text);
      }
    }
  }

  std::vector<int64_t> finish() {
    tokenize();
    return std::move(ids_);
  }

 private:
  void tokenize() {
    const std::vector<int64_t> ids = tokenizer_.encode_text(held_);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    held_.clear();
  }

  const Tokenizer& tokenizer_;
  std::string held_;
  std::vector<int64_t> ids_;
};

class Renderer {
 public:
  Renderer(const Tokenizer& tokenizer, const PromptDocument& document, const std::vector<int64_t>& tiles_per_image,
           const PromptOptions& options)
      : document_(document), tiles_(tiles_per_image), options_(options), writer_(tokenizer) {}

  std::vector<int64_t> run(const std::vector<Turn>& turns) {
    writer_.pieces(document_.begin);
    if (turns.front().role != Role::kSystem) turn({Role::kSystem, document_.default_system, 0});
    for (const Turn& each : turns) turn(each);
    writer_.pieces(document_.assistant.before);
    if (options_.think) writer_.pieces(document_.thinking);
    return writer_.finish();
  }

 private:
  void turn(const Turn& turn) {
    if (turn.role == Role::kSystem && turn.text.empty()) return;
    const Frame& frame = turn.role == Role::kSystem ? document_.system
                         : turn.role == Role::kUser ? document_.user
                                                    : document_.assistant;
    writer_.pieces(frame.before);
    if (turn.images > 0) {
      user_with_images(turn);
    } else {
      message(turn.role == Role::kAssistant ? past_answer(turn.text) : turn.text);
    }
    writer_.pieces(frame.after);
  }

  void user_with_images(const Turn& turn) {
    const ImageTokens& images = document_.images;
    std::string text;
    if (turn.text.find(images.placeholder) == std::string::npos) {
      for (int64_t index = 0; index < turn.images; ++index) text += images.default_position;
    }
    text += turn.text;
    std::string_view rest = text;
    for (int64_t index = 0; index < turn.images; ++index) {
      const size_t at = rest.find(images.placeholder);  // check_turns has counted them.
      message(rest.substr(0, at));
      writer_.token(images.start.id);
      writer_.token(images.context.id, tiles_[image_++] * images.tokens_per_tile);
      writer_.token(images.end.id);
      rest.remove_prefix(at + images.placeholder.size());
    }
    message(rest);
  }

  std::string_view past_answer(std::string_view text) const {
    const PastAnswer& past = document_.past_answer;
    const size_t end = past.starts_after.empty() ? std::string_view::npos : text.rfind(past.starts_after);
    if (end != std::string_view::npos) text.remove_prefix(end + past.starts_after.size());
    while (!text.empty()) {
      size_t length = 0;
      next_character(text, &length);
      if (past.strip_leading.find(text.substr(0, length)) == std::string::npos) break;
      text.remove_prefix(length);
    }
    return text;
  }

  // A message's text, in which grounding tokens are tokens if that was asked for.
  void message(std::string_view text) {
    size_t written = 0;
    for (size_t at = 0; options_.grounding && at < text.size();) {
      const TokenPiece* token = grounding_token(text.substr(at));
      if (token == nullptr) {
        ++at;
        continue;
      }
      writer_.text(text.substr(written, at - written));
      writer_.token(token->id);
      written = at += token->token.size();
    }
    writer_.text(text.substr(written));
  }

  const TokenPiece* grounding_token(std::string_view text) const {
    for (const TokenPiece& piece : document_.grounding_tokens) {
      if (text.substr(0, piece.token.size()) == piece.token) return &piece;
    }
    return nullptr;
  }

  const PromptDocument& document_;
  const std::vector<int64_t>& tiles_;
  const PromptOptions& options_;
  IdWriter writer_;
  size_t image_ = 0;
};

}  // namespace

std::vector<int64_t> encode_prompt(const Tokenizer& tokenizer, const PromptDocument& document,
                                   const std::vector<Turn>& turns, const std::vector<int64_t>& tiles_per_image,
                                   int64_t max_positions, const PromptOptions& options) {
  check_turns(turns, tiles_per_image, document.images.placeholder);
  check_length(turns, tiles_per_image, document.images.tokens_per_tile, max_positions);
  std::vector<int64_t> ids = Renderer(tokenizer, document, tiles_per_image, options).run(turns);
  require_room(ids.size(), max_positions);
  return ids;
}

std::vector<int64_t> encode_raw(const Tokenizer& tokenizer, const std::string& text, int64_t max_positions) {
  check_length({{Role::kUser, text, 0}}, {}, 1, max_positions);
  std::vector<int64_t> ids = tokenizer.encode_text(text);
  if (ids.empty()) throw Error(Code::kInput, "There is no text to continue.", {"prompt", "at least one token", "", ""});
  require_room(ids.size(), max_positions);
  return ids;
}

}  // namespace r1v
