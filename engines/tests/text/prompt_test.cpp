#include "text/prompt.h"

#include <gtest/gtest.h>

#include "tests/golden.h"
#include "tests/text/byte_tokenizer.h"

namespace r1v {
namespace {

constexpr int64_t kManyPositions = 1 << 24;

std::vector<Turn> turns_of(const Json& json) {
  std::vector<Turn> turns;
  for (const Json& turn : json) {
    const std::string role = turn.at("role");
    const Role named = role == "system" ? Role::kSystem : role == "user" ? Role::kUser : Role::kAssistant;
    turns.push_back({named, turn.at("text"), turn.at("images")});
  }
  return turns;
}

std::vector<int64_t> ids_of(const Json& runs) {
  std::vector<int64_t> ids;
  for (const Json& run : runs) ids.insert(ids.end(), run[1].get<size_t>(), run[0].get<int64_t>());
  return ids;
}

TEST(Prompt, IdsOfEveryFamilyAreThoseOfPython) {
  GOLDEN_FOLDER(root, "text");
  size_t families = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root / "prompts")) {
    SCOPED_TRACE(entry.path().filename().string());
    const Json pipeline = read_golden(entry.path() / "pipeline.json"),
               golden = read_golden(entry.path() / "golden.json");
    const PromptDocument document = prompt_from_json(pipeline.at("prompt"), "pipeline.json: prompt");
    const Tokenizer tokenizer(read_golden(entry.path() / "tokenizer.json"),
                              tokenizer_from_json(pipeline.at("tokenizer"), "pipeline.json: tokenizer"));
    EXPECT_EQ(stop_ids_from_json(pipeline.at("stop_tokens"), "stop_tokens"), golden.at("stop_ids"));
    for (const Json& expected : golden.at("cases")) {
      const PromptOptions options{expected.at("think"), expected.at("grounding")};
      const std::vector<int64_t> ids = encode_prompt(tokenizer, document, turns_of(expected.at("turns")),
                                                     expected.at("tiles"), kManyPositions, options);
      ASSERT_EQ(ids, ids_of(expected.at("ids"))) << expected.at("turns");
    }
    ++families;
  }
  EXPECT_GE(families, 3u);
}

PromptDocument document() {
  const auto text = [](const char* content) { return Pieces{{false, content, 0}}; };
  const Pieces end = {{true, "<end>", 256}};
  return {{},
          {text("S:"), end},
          {text("U:"), end},
          {text("A:"), end},
          "",
          {},
          {"</t>", "\n"},
          {"<image>", "<image>\n", {"<i>", 257}, {"<c>", 258}, {"</i>", 259}, 2},
          {}};
}

std::vector<int64_t> encode(const std::vector<Turn>& turns, const std::vector<int64_t>& tiles = {},
                            int64_t max_positions = 1000) {
  const Tokenizer tokenizer =
      byte_tokenizer({}, {{"<end>", 256, true}, {"<i>", 257, true}, {"<c>", 258, true}, {"</i>", 259, true}});
  return encode_prompt(tokenizer, document(), turns, tiles, max_positions);
}

TEST(Prompt, ImagesStandWhereTheTextSaysSo) {
  const std::vector<int64_t> expected = {'U', ':', 'a', 257, 258, 258, 259, 'b', 256, 'A', ':'};
  EXPECT_EQ(encode({{Role::kUser, "a<image>b", 1}}, {1}), expected);
}

TEST(Prompt, WhatCannotBeAskedIsRefusedWithItsReason) {
  const Turn user{Role::kUser, "q", 0}, assistant{Role::kAssistant, "a", 0};
  const std::tuple<const char*, std::vector<Turn>, std::vector<int64_t>> cases[] = {
      {"no turns", {}, {}},
      {"user, user", {user, user}, {}},
      {"user, assistant", {user, assistant}, {}},
      {"user, system", {user, {Role::kSystem, "s", 0}}, {}},
      {"neither shows nor asks", {{Role::kUser, " \n\u3000", 0}}, {}},
      {"Only a user", {{Role::kSystem, "s", 1}, user}, {1}},
      {"2 placeholders, or none", {{Role::kUser, "<image>", 2}}, {1, 1}},
      {"1 images", {{Role::kUser, "q", 1}}, {}},
      {"less than no image", {{Role::kUser, "q", -1}}, {}},
      {"one tile at least", {{Role::kUser, "q", 1}}, {0}},
      {"tokens of images alone", {{Role::kUser, "q", 1}}, {501}},
      {"A size is beyond", {{Role::kUser, "q", 2}}, {INT64_MAX, INT64_MAX}},
      {"bytes of text", {{Role::kUser, std::string(16'001, 'a'), 0}}, {}},
      {"fewer than 1000 tokens", {{Role::kUser, std::string(995, 'a'), 0}}, {}},
      {"not valid Unicode", {{Role::kUser, "\xff", 0}}, {}},
  };
  for (const auto& [reason, turns, tiles] : cases) {
    try {
      encode(turns, tiles);
      ADD_FAILURE() << reason;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(encode({{Role::kUser, std::string(994, 'a'), 0}}).size(), 999u);
}

TEST(Prompt, ARawTextIsTokenizedAlone) {
  const Tokenizer tokenizer = byte_tokenizer();
  EXPECT_EQ(encode_raw(tokenizer, "ab", 3), (std::vector<int64_t>{'a', 'b'}));
  EXPECT_THROW(encode_raw(tokenizer, "", 3), Error);
  EXPECT_THROW(encode_raw(tokenizer, "abc", 3), Error);
}

}  // namespace
}  // namespace r1v
