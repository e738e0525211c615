#include "image/png_text.h"

#include <zlib.h>

#include "base/utf8.h"

namespace r1v {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 20;  // Pillow's MAX_TEXT_CHUNK

// The part of `rest` before its first null byte, which is taken from it. None: there is no null byte.
std::optional<std::string_view> take_field(std::string_view* rest) {
  const size_t end = rest->find('\0');
  if (end == std::string_view::npos) return std::nullopt;
  const std::string_view field = rest->substr(0, end);
  rest->remove_prefix(end + 1);
  return field;
}

}  // namespace

InflatedText inflate_text(std::string_view packed) {
  InflatedText result;
  z_stream stream{};
  if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
  std::string text(kMaxBytes, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());  // a chunk's length has 32 bits
  stream.next_out = reinterpret_cast<Bytef*>(text.data());
  stream.avail_out = static_cast<uInt>(text.size());
  const int state = inflate(&stream, Z_SYNC_FLUSH);
  text.resize(text.size() - stream.avail_out);
  result.too_large = state == Z_OK && stream.avail_in > 0;
  result.is_damaged = state != Z_OK && state != Z_STREAM_END && state != Z_BUF_ERROR;
  inflateEnd(&stream);
  if (!result.is_damaged) result.text = std::move(text);
  return result;
}

std::optional<InternationalText> parse_international_text(std::string_view body) {
  const std::optional<std::string_view> key = take_field(&body);
  if (!key || body.size() < 2) return std::nullopt;
  const bool is_compressed = body[0] != 0;
  const bool method_is_known = body[1] == 0;
  body.remove_prefix(2);
  const std::optional<std::string_view> language = take_field(&body);
  const std::optional<std::string_view> translated = language ? take_field(&body) : std::nullopt;
  if (!translated || (is_compressed && !method_is_known)) return std::nullopt;
  InternationalText result;
  result.key = *key;
  result.text = body;
  if (is_compressed) {
    const InflatedText inflated = inflate_text(body);
    if (inflated.is_damaged) return std::nullopt;
    result.too_large = inflated.too_large;
    result.text = inflated.text;
  }
  result.is_valid = is_utf8(*language) && is_utf8(*translated) && is_utf8(result.text);
  return result;
}

}  // namespace r1v
