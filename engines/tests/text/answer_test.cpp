#include "text/answer.h"

#include <gtest/gtest.h>

#include "tests/golden.h"

namespace r1v {
namespace {

const std::pair<const char*, FinishReason> kReasons[] = {{"stop", FinishReason::kStop},
                                                         {"length", FinishReason::kLength},
                                                         {"context", FinishReason::kContext},
                                                         {"cancelled", FinishReason::kCancelled},
                                                         {"deadline", FinishReason::kDeadline}};

std::optional<FinishReason> reason_of(const Json& expected) {
  if (expected.is_null()) return std::nullopt;
  for (const auto& [name, reason] : kReasons) {
    if (expected == name) return reason;
  }
  throw Error(Code::kInput, "No such reason.", {expected.dump(), "", "", ""});
}

void expect_stream(const Json& expected, const Tokenizer& tokenizer) {
  const Detokenizer detokenizer(tokenizer, expected.at("shown").get<std::vector<int64_t>>());
  const Stops stops{expected.at("stop"), expected.at("stop_in_reasoning")};
  const Json& thinking = expected.at("thinking");
  AnswerText text(detokenizer, stops, thinking.is_null() ? std::nullopt : std::optional<bool>(thinking.get<bool>()),
                  {"<think>", "</think>"});
  AnswerStream stream(std::move(text), expected.at("stop_ids"), expected.at("max_new_tokens"));
  std::optional<Answer> answer;
  for (const Json& step : expected.at("steps")) {
    ASSERT_FALSE(answer);
    const auto token = step[0].is_null() ? std::nullopt : std::optional<int64_t>(step[0].get<int64_t>());
    const AnswerEvent event = stream.push(token, reason_of(step[1]));
    ASSERT_EQ(event.piece.reasoning, step[2]);
    ASSERT_EQ(event.piece.answer, step[3]);
    answer = event.answer;
  }
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->reasoning, expected.at("reasoning"));
  EXPECT_EQ(answer->text, expected.at("text"));
  EXPECT_EQ(answer->reasoning_complete, expected.at("complete"));
  EXPECT_EQ(answer->finish_reason, reason_of(expected.at("finish_reason")));
  EXPECT_EQ(answer->reasoning_tokens, expected.at("reasoning_tokens"));
}

TEST(AnswerStream, EventsAndAnswersAreThoseOfPython) {
  GOLDEN_FOLDER(root, "text");
  const Json golden = read_golden(root / "streams/golden.json");
  const Tokenizer tokenizer(read_golden(root / "streams/tokenizer.json"),
                            tokenizer_from_json(golden.at("tokenizer"), "tokenizer"));
  EXPECT_GE(golden.at("cases").size(), 4000u);
  for (const Json& expected : golden.at("cases")) {
    expect_stream(expected, tokenizer);
    ASSERT_FALSE(testing::Test::HasFailure()) << expected.dump();
  }
}

TEST(ReasoningSplitter, TheSizeOfThePiecesDoesNotChangeTheResult) {
  const std::string text = " <think> a </think> <think>b</think>\n answer </think> stop more ";
  for (size_t size = 1; size < text.size(); ++size) {
    ReasoningSplitter splitter(false, {"stop"}, {"<think>", "</think>"});
    AnswerPiece whole;
    const auto add = [&](const AnswerPiece& piece) {
      whole.reasoning += piece.reasoning;
      whole.answer += piece.answer;
    };
    for (size_t at = 0; at < text.size(); at += size) add(splitter.push(text.substr(at, size)));
    add(splitter.flush());
    EXPECT_EQ(whole.reasoning, "a  b") << size;
    EXPECT_EQ(whole.answer, "answer </think>") << size;
    EXPECT_TRUE(splitter.stopped());
  }
}

}  // namespace
}  // namespace r1v
