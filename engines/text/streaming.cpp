#include "text/streaming.h"

#include <algorithm>

#include "base/utf8.h"
#include "text/unicode.h"

namespace r1v {
namespace {

constexpr char kReplacement[] = "\xef\xbf\xbd";

// Bytes at `at` that may begin a character, which is not whole: 1 to 3. 0 where no character begins so.
size_t started_length(std::string_view bytes, size_t at) {
  const auto lead = static_cast<unsigned char>(bytes[at]);
  if (lead < 0xc2 || lead > 0xf4) return 0;
  const size_t whole = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  for (size_t length = whole - 1; length > 0; --length) {
    if (at + length > bytes.size()) continue;
    // Whether it can be completed: the first and the last continuations of a second byte that is bound to a range.
    for (const char* rest : {"\x80\x80\x80", "\xbf\xbf\xbf"}) {
      std::string completed(bytes.substr(at, length));
      completed.append(rest, whole - length);
      if (utf8_length(completed, 0) == whole) return length;
    }
  }
  return 0;
}

// Whether the bytes from `at` on are the first two of a surrogate, which Python waits for before it replaces them.
bool is_half_surrogate(std::string_view bytes, size_t at) {
  return bytes.size() - at == 2 && bytes[at] == '\xed' && static_cast<unsigned char>(bytes[at + 1]) >= 0xa0 &&
         static_cast<unsigned char>(bytes[at + 1]) < 0xc0;
}

}  // namespace

std::string Utf8Decoder::push(std::string_view bytes) {
  held_ += bytes;
  std::string text;
  size_t at = 0;
  while (at < held_.size()) {
    const size_t length = utf8_length(held_, at);
    if (length > 0) {
      text.append(held_, at, length);
      at += length;
      continue;
    }
    const size_t started = started_length(held_, at);
    const bool is_unfinished = started > 0 && at + started == held_.size();
    if (is_unfinished || is_half_surrogate(held_, at)) break;  // The next bytes may complete it.
    text += kReplacement;
    at += std::max<size_t>(started, 1);
  }
  held_.erase(0, at);
  return text;
}

std::string Utf8Decoder::flush() {
  const std::string held = std::exchange(held_, "");
  if (held.empty()) return "";
  return is_half_surrogate(held, 0) ? std::string(kReplacement) + kReplacement : kReplacement;
}

std::string Detokenizer::push(int64_t token_id) {
  const bool is_shown = std::find(shown_.begin(), shown_.end(), token_id) != shown_.end();
  if (tokenizer_->hides(token_id) && !is_shown) return "";
  return decoder_.push(tokenizer_->token_bytes(token_id));
}

std::string StopStrings::push(std::string_view text) {
  if (stopped_) return "";
  if (stops_.empty()) return std::string(text);
  held_ += text;
  size_t start = std::string::npos, partial = 0;
  for (const std::string& stop : stops_) {
    start = std::min(start, held_.find(stop));
    partial = std::max(partial, partial_tag_length(held_, stop));
  }
  stopped_ = start != std::string::npos;
  const size_t safe = stopped_ ? start : held_.size() - partial;
  std::string certain = held_.substr(0, safe);
  held_ = stopped_ ? "" : held_.substr(safe);
  return certain;
}

std::string StopStrings::flush() { return std::exchange(held_, ""); }

std::string TrailingSpace::push(std::string_view text) {
  held_ += text;
  const size_t certain = strip_end(held_).size();
  std::string pushed = held_.substr(0, certain);
  held_.erase(0, certain);
  return pushed;
}

size_t partial_tag_length(std::string_view text, std::string_view tag) {
  for (size_t length = std::min(tag.empty() ? 0 : tag.size() - 1, text.size()); length > 0; --length) {
    if (text.substr(text.size() - length) == tag.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace r1v
