#include "text/documents.h"

#include <gtest/gtest.h>

namespace r1v {
namespace {

Json prompt() {
  return Json::parse(R"({"begin": [{"token": "<b>", "id": 1}, {"text": "x"}], "system": {"before": [], "after": []},
      "user": {"before": [], "after": []}, "assistant": {"before": [], "after": []}, "default_system": "",
      "thinking": [], "past_answer": {"starts_after": "</think>", "strip_leading": "\n"},
      "images": {"placeholder": "<image>", "default_position": "<image>\n", "start": {"token": "<i>", "id": 2},
                 "context": {"token": "<c>", "id": 3}, "end": {"token": "</i>", "id": 4}, "tokens_per_tile": 256},
      "grounding_tokens": [{"token": "<ref>", "id": 5}]})");
}

TEST(Documents, APromptIsReadFieldByField) {
  const PromptDocument document = prompt_from_json(prompt(), "prompt");
  ASSERT_EQ(document.begin.size(), 2u);
  EXPECT_TRUE(document.begin[0].is_token);
  EXPECT_EQ(document.begin[0].id, 1);
  EXPECT_EQ(document.begin[1].text, "x");
  EXPECT_EQ(document.images.context.id, 3);
  EXPECT_EQ(document.images.tokens_per_tile, 256);
  EXPECT_EQ(document.grounding_tokens.at(0).token, "<ref>");
  EXPECT_EQ(document.past_answer.starts_after, "</think>");
}

TEST(Documents, AWrongFieldIsNamed) {
  const std::pair<const char*, Json> wrong[] = {
      {"/begin", 3},
      {"/begin/0/id", -1},
      {"/begin/0/id", 1 << 24},
      {"/begin/0/token", ""},
      {"/begin/1/text", 5},
      {"/user/before", "x"},
      {"/default_system", nullptr},
      {"/images/placeholder", ""},
      {"/images/default_position", "none"},
      {"/images/default_position", "<image><image>"},
      {"/images/tokens_per_tile", 0},
      {"/images/tokens_per_tile", INT64_MAX},
      {"/images/context/id", "3"},
      {"/grounding_tokens/0", 5},
  };
  for (const auto& [place, value] : wrong) {
    Json spoiled = prompt();
    spoiled[Json::json_pointer(place)] = value;
    std::string dotted = std::string("prompt") + place;
    std::replace(dotted.begin(), dotted.end(), '/', '.');
    try {
      prompt_from_json(spoiled, "prompt");
      ADD_FAILURE() << place << " is taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kBundle);
      EXPECT_NE(std::string(error.what()).find(dotted), std::string::npos) << dotted << "\n" << error.what();
    }
  }
}

TEST(Documents, TokenizerReasoningAndStopTokensAreRead) {
  const Json tokenizer =
      Json::parse(R"({"definition": "tokenizer.json", "added_tokens": [{"token": "<e>", "id": 7, "hidden": true}]})");
  EXPECT_TRUE(tokenizer_from_json(tokenizer, "tokenizer").added_tokens.at(0).hidden);
  EXPECT_EQ(reasoning_from_json({{"start", "<a>"}, {"end", "</a>"}}, "reasoning").end, "</a>");
  EXPECT_THROW(reasoning_from_json({{"start", ""}, {"end", "</a>"}}, "reasoning"), Error);
  const Json stops = Json::parse(R"([{"id": 9, "token": null}, {"id": 2, "token": "<e>"}])");
  EXPECT_EQ(stop_ids_from_json(stops, "stop_tokens"), (std::vector<int64_t>{2, 9}));
  EXPECT_THROW(stop_ids_from_json(Json::parse(R"([{"id": -1}])"), "stop_tokens"), Error);
}

}  // namespace
}  // namespace r1v
