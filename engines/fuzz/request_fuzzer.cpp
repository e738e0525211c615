// The JSON of a request to Triton's backend: messages, or behind an odd first byte sampling parameters. What is read
// keeps its promises; what is not is refused as the caller's error.
#include "base/utf8.h"
#include "fuzz/check.h"
#include "triton/conversation.h"
#include "triton/sampling_parameters.h"

namespace {

using namespace r1v;

constexpr char kPlaceholder[] = "<image>";

int64_t places_in(const std::string& text) {
  int64_t count = 0;
  for (size_t at = text.find(kPlaceholder); at != text.npos; at = text.find(kPlaceholder, at + 1)) ++count;
  return count;
}

void read_messages(const std::string& json) {
  const triton::Conversation conversation = triton::read_conversation(json, {"<think>", "</think>"}, kPlaceholder);
  check(!conversation.turns.empty(), "a conversation without turns");
  size_t images = 0;
  for (const Turn& turn : conversation.turns) {
    check(is_utf8(turn.text), "the text is no UTF-8");
    check(turn.images == 0 || places_in(turn.text) == turn.images, "images without a place of their own");
    images += static_cast<size_t>(turn.images);
  }
  check(images == conversation.image_urls.size(), "images that no turn shows");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string json(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    if ((data[0] & 1) == 0) {
      read_messages(json);
    } else {
      triton::read_sampling(json, {}).validate();
    }
  } catch (const Error& error) {
    check(error.code() == Code::kInput || error.code() == Code::kUsage, "an error that is not the caller's");
    check(is_utf8(error.what()), "the message is no UTF-8");
  }
  return 0;
}
