#include "text/turns.h"

#include "base/checked.h"
#include "base/error.h"
#include "text/unicode.h"

namespace r1v {
namespace {

constexpr size_t kMaxBytesPerToken = 16;  // bytes of text for each token of a context that are tokenized at all

const char* role_name(Role role) {
  return role == Role::kSystem ? "system" : role == Role::kUser ? "user" : "assistant";
}

void check_order(const std::vector<Turn>& turns) {
  const size_t first = !turns.empty() && turns.front().role == Role::kSystem ? 1 : 0;
  bool in_order = (turns.size() - first) % 2 == 1;
  std::string roles;
  for (size_t index = 0; index < turns.size(); ++index) {
    roles += (index > 0 ? ", " : "") + std::string(role_name(turns[index].role));
    const Role expected = (index - first) % 2 == 0 ? Role::kUser : Role::kAssistant;
    in_order = in_order && (index < first || turns[index].role == expected);
  }
  if (in_order) return;
  throw Error(Code::kInput, "The turns of the conversation are out of order.",
              {"", "an optional system turn, then user and assistant in alternation, a user last",
               roles.empty() ? "no turns" : roles, ""});
}

void check_turn(const Turn& turn, const std::string& where) {
  require_utf8(turn.text);
  if (turn.images < 0) throw Error(Code::kUsage, "A turn cannot show less than no image.", {where, "", "", ""});
  if (turn.role == Role::kUser && strip_front(turn.text).empty() && turn.images == 0) {
    throw Error(Code::kInput, "The user neither shows nor asks anything.", {where, "", "", "ask a question"});
  }
  if (turn.role != Role::kUser && turn.images > 0) {
    throw Error(Code::kInput, "Only a user can show images.",
                {where, "", std::string("role ") + role_name(turn.role), ""});
  }
}

void check_placeholders(const Turn& turn, const std::string& placeholder) {
  int64_t count = 0;
  for (size_t at = turn.text.find(placeholder); at != std::string::npos;
       at = turn.text.find(placeholder, at + placeholder.size())) {
    ++count;
  }
  if (turn.images == 0 || count == 0 || count == turn.images) return;
  throw Error(Code::kInput, "The text's image placeholders do not match the images.",
              {placeholder, std::to_string(turn.images) + " placeholders, or none", std::to_string(count),
               "write one " + placeholder + " for each image, or omit them: the images then come first"});
}

[[noreturn]] void throw_too_long(int64_t max_positions, const std::string& found) {
  const std::string limit = std::to_string(max_positions);
  throw Error(Code::kInput, "The prompt is longer than the model's context.",
              {"images and text",
               "at most " + limit + " tokens, of at most " + std::to_string(kMaxBytesPerToken) + " bytes of text each",
               found, "use fewer or smaller images, or less text"});
}

}  // namespace

void check_turns(const std::vector<Turn>& turns, const std::vector<int64_t>& tiles_per_image,
                 const std::string& placeholder) {
  check_order(turns);
  size_t shown = 0;
  for (size_t index = 0; index < turns.size(); ++index) {
    check_turn(turns[index], "turn " + std::to_string(index + 1));
    check_placeholders(turns[index], placeholder);
    shown = checked_sum({shown, static_cast<size_t>(turns[index].images)}, "images");
  }
  if (shown != tiles_per_image.size()) {
    throw Error(Code::kInput, "The images do not match the turns.",
                {"", std::to_string(shown) + " images", std::to_string(tiles_per_image.size()), ""});
  }
}

void check_length(const std::vector<Turn>& turns, const std::vector<int64_t>& tiles_per_image, int64_t tokens_per_tile,
                  int64_t max_positions) {
  size_t image_tokens = 0, text_bytes = 0;
  const auto limit = static_cast<size_t>(max_positions);
  for (const int64_t tiles : tiles_per_image) {
    if (tiles < 1) throw Error(Code::kUsage, "An image has one tile at least.", {"tiles_per_image", "", "", ""});
    const size_t tokens = checked_product({static_cast<size_t>(tiles), static_cast<size_t>(tokens_per_tile)}, "images");
    image_tokens = checked_sum({image_tokens, tokens}, "images");
  }
  for (const Turn& turn : turns) text_bytes = checked_sum({text_bytes, turn.text.size()}, "text");
  if (image_tokens > limit) throw_too_long(max_positions, std::to_string(image_tokens) + " tokens of images alone");
  if (text_bytes / kMaxBytesPerToken >= limit && text_bytes > kMaxBytesPerToken * limit) {
    throw_too_long(max_positions, std::to_string(text_bytes) + " bytes of text");
  }
}

void require_room(size_t prompt_tokens, int64_t max_positions) {
  if (prompt_tokens < static_cast<size_t>(max_positions)) return;
  throw Error(
      Code::kInput, "The prompt is too long for this model.",
      {"prompt", "fewer than " + std::to_string(max_positions) + " tokens", std::to_string(prompt_tokens) + " tokens",
       "use fewer or smaller images, fewer tiles per image, or a shorter text"});
}

}  // namespace r1v
