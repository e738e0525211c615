#include "triton/conversation.h"

#include <gtest/gtest.h>

#include "tests/error_message.h"

namespace r1v::triton {
namespace {

Conversation read(const std::string& messages) {
  return read_conversation(messages, {"<think>", "</think>"}, "<image>");
}

TEST(Conversation, HasItsTurnsWithImagesWhereTheyAreShown) {
  const Conversation conversation = read(R"([
    {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
    {"role": "user", "name": "me", "content": [{"type": "text", "text": "Before"},
      {"type": "image_url", "image_url": {"url": "data:,1", "detail": "low"}}, {"type": "text", "text": "after"}]},
    {"role": "assistant", "content": "3", "reasoning_content": "I see."},
    {"role": "user", "content": "What is <image>?"},
    {"role": "assistant", "content": null, "reasoning": "", "refusal": null},
    {"role": "user", "content": []}])");
  ASSERT_EQ(conversation.turns.size(), 6u);
  EXPECT_EQ(conversation.turns[0].role, Role::kSystem);
  EXPECT_EQ(conversation.turns[0].text, "Be\nbrief.");
  EXPECT_EQ(conversation.turns[1].text, "Before\n<image>\nafter");
  EXPECT_EQ(conversation.turns[1].images, 1);
  EXPECT_EQ(conversation.image_urls, std::vector<std::string>{"data:,1"});
  EXPECT_EQ(conversation.turns[2].role, Role::kAssistant);
  EXPECT_EQ(conversation.turns[2].text, "<think>I see.</think>3");
  EXPECT_EQ(conversation.turns[3].text, "What is <image>?");
  EXPECT_EQ(conversation.turns[3].images, 0);
  EXPECT_EQ(conversation.turns[4].text, "<think></think>");
  EXPECT_EQ(conversation.turns[5].text, "");
}

TEST(Conversation, IsRefusedWithTheFieldThatIsWrong) {
  const std::pair<const char*, const char*> wrong[] = {
      {"[", "not JSON"},
      {"[]", "at least one message"},
      {"{}", "at least one message"},
      {"[5]", "messages[0]"},
      {R"([{"role": "tool", "content": "x"}])", "messages[0].role"},
      {R"([{"content": "x"}])", "messages[0].role"},
      {R"([{"role": "user"}])", "messages[0].content"},
      {R"([{"role": "user", "content": null}])", "messages[0].content"},
      {R"([{"role": "user", "content": 5}])", "messages[0].content"},
      {R"([{"role": "user", "content": "x", "color": 1}])", "messages[0].color"},
      {R"([{"role": "user", "content": "x", "name": 1}])", "messages[0].name"},
      {R"([{"role": "user", "content": [{"type": "audio"}]}])", "messages[0].content[0].type"},
      {R"([{"role": "user", "content": [{"type": "text"}]}])", "messages[0].content[0].text"},
      {R"([{"role": "user", "content": [{"type": "text", "text": "x", "at": 1}]}])", "messages[0].content[0].at"},
      {R"([{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}])", "content[0].image_url"},
      {R"([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,", "detail": "x"}}]}])",
       "image_url.detail"},
      {R"([{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}])",
       "content[0].type"},
      {R"([{"role": "assistant", "content": "x", "refusal": "no"}])", "messages[0].refusal"},
      {R"([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}},
                                        {"type": "text", "text": "a <image>"}]}])",
       "take <image> out of the text"},
      {"[\"\xff\"]", "not JSON"},
  };
  for (const auto& [messages, cause] : wrong) {
    const std::string message = error_message([&, given = messages] { read(given); });
    EXPECT_NE(message.find(cause), std::string::npos) << messages << "\n" << message;
  }
}

}  // namespace
}  // namespace r1v::triton
