// Messages of the OpenAI API become a conversation: r1v_export/serve/conversation.py.
#pragma once

#include <string>
#include <vector>

#include "text/documents.h"
#include "text/prompt.h"

namespace r1v::triton {

struct Conversation {
  std::vector<Turn> turns;
  std::vector<std::string> image_urls;  // of all turns, in order
};

// Args:
//   messages: JSON.
//   tags: what the template reads around the reasoning of an earlier answer.
//   placeholder: of an image in a text.
// Throws kInput: a message is malformed, or a text has the placeholder where its message has images too.
Conversation read_conversation(const std::string& messages, const ReasoningTags& tags, const std::string& placeholder);

}  // namespace r1v::triton
