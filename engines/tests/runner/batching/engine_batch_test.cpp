// As tests/runner/batching/test_arrivals.py: whatever requests come, in whatever order, and whoever goes away.
#include "runner/batching/engine_batch.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/runner/batching/questions.h"

namespace r1v {
namespace {

constexpr int64_t kSlotBytes = 2;  // of the fake engine
constexpr int64_t kAnyBytes = int64_t{1} << 30;

BatchingOptions options(int64_t rows, int64_t slots, bool keep = false, int64_t chunk = 512) {
  BatchingOptions options;
  options.max_rows = rows;
  options.cache_bytes = slots * kSlotBytes;
  options.keep_prefixes = keep;
  options.prefill_chunk = chunk;
  return options;
}

// A question whose answer no token ends.
Question endless(std::vector<int64_t> ids, int64_t max_new_tokens, std::vector<uint8_t> images = {}) {
  Question asked = question(std::move(ids), max_new_tokens, std::move(images));
  asked.sampling.logit_bias = {{kStopId, -100}};
  return asked;
}

std::vector<int64_t> ids_from(int64_t from, int64_t count) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(from + i % 9);
  return ids;
}

// A question on its way through a batch.
struct Asked {
  explicit Asked(Question question) : question(std::move(question)), stream(stream_of(this->question)) {
    prompt = {this->question.ids, {}, 0};
    for (const uint8_t color : this->question.images) {
      ImageDigest digest{};
      digest[0] = color;
      const std::vector<float> embeds(2 * 2, embedding_of(color));
      prompt.images.push_back({std::make_shared<const std::vector<float>>(embeds), digest});
    }
  }

  bool admit(EngineBatch* batch) {
    state = batch->admit(prompt, question.sampling, &stream, &timings);
    return state != nullptr;
  }

  Question question;
  AnswerStream stream;
  EncodedPrompt prompt;
  Timings timings{};
  RowState* state = nullptr;
  std::vector<int64_t> tokens{};  // of its events
  std::optional<Answer> answer{};
  int64_t leaves = -1;  // steps after which its caller goes away
};

// Gives the events of a step to their requests.
void step(EngineBatch* batch, const std::vector<Asked*>& requests) {
  for (const EngineBatch::Outcome& outcome : batch->step()) {
    const auto* event = std::get_if<AnswerEvent>(&outcome.result);
    ASSERT_NE(event, nullptr);
    const auto request = std::find_if(requests.begin(), requests.end(),
                                      [&](const Asked* each) { return each->state == outcome.state && !each->answer; });
    ASSERT_NE(request, requests.end());
    (*request)->tokens.push_back(*event->token_id);
    (*request)->answer = event->answer;
    if (event->answer) (*request)->state = nullptr;
  }
}

void finish(EngineBatch* batch, const std::vector<Asked*>& requests) {
  while (!batch->empty()) step(batch, requests);
}

// Answers of requests that arrive at random, with a cache of some slots; how often one of them gave up its row.
int64_t random_arrivals(unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](int64_t limit) { return static_cast<int64_t>(random() % static_cast<uint64_t>(limit)); };
  const int64_t budgets[] = {320, kMaxPositions, 2 * kMaxPositions, 5 * kMaxPositions, kAnyBytes};
  const int64_t chunks[] = {1, 7, 32, 512};
  const bool growing = below(2) == 0;
  const int64_t slots = budgets[below(growing ? 2 : 5)];
  const int64_t rows = 1 + below(5);
  const bool keep = below(2) == 0;
  const BatchingOptions limits = options(rows, slots, keep, chunks[below(4)]);
  FakeEngine engine;
  if (below(4) == 0) engine.limits = {kSlotBytes, 3, kMaxPositions, true};
  if (below(8) == 0) engine.limits.movable = false;
  if (engine.limits.capacity && slots < kMaxPositions) engine.limits.capacity = std::nullopt;
  EngineBatch batch(engine, kMaxPositions, limits);
  std::vector<std::unique_ptr<Asked>> requests;
  std::vector<Asked*> all;
  int64_t bound = 0, longest = 0;
  for (int64_t count = 1 + below(12); count > 0; --count) {
    requests.push_back(std::make_unique<Asked>(random_question(&random, growing)));
    all.push_back(requests.back().get());
    if (below(3) == 0) all.back()->leaves = below(40);
    const Question& asked = all.back()->question;
    const auto tokens = static_cast<int64_t>(asked.ids.size()) + asked.sampling.max_new_tokens;
    bound += 4 + tokens;
    longest = std::max(longest, tokens);
  }
  size_t arrived = 0, admitted = 0;
  for (int64_t steps = 0; arrived < all.size() || admitted < all.size() || !batch.empty(); ++steps) {
    if (arrived < all.size()) arrived += static_cast<size_t>(below(3));
    arrived = std::min(arrived, all.size());
    while (admitted < arrived && all[admitted]->admit(&batch)) ++admitted;
    for (Asked* request : all) {
      if (request->state == nullptr || request->leaves-- != 0) continue;
      batch.drop(request->state);
      request->state = nullptr;
    }
    step(&batch, all);
    if (testing::Test::HasFatalFailure()) return 0;
    const BatchingStats stats = batch.stats();
    EXPECT_LE(stats.cache_bytes, limits.cache_bytes);
    // A chunk or a token of somebody in each step, and what gave way is computed again.
    if (steps > 2 * (bound + (1 + stats.preempted) * longest) + 20) {
      ADD_FAILURE() << "seed " << seed << ": requests starve";
      return 0;
    }
  }
  for (const Asked* request : all) {
    std::vector<int64_t> expected = plain_answer(request->question);
    if (!request->answer) expected.resize(std::min(expected.size(), request->tokens.size()));
    EXPECT_EQ(request->tokens, expected) << "seed " << seed;
    EXPECT_TRUE(!request->answer || request->answer->token_ids == expected);
    EXPECT_TRUE(request->answer || request->leaves < 0);
  }
  // No row belongs to a request any more: there is room for the longest of them.
  Asked last(question(ids_from(1, 200), 1));
  EXPECT_TRUE(last.admit(&batch)) << "seed " << seed;
  return batch.stats().preempted;
}

TEST(EngineBatch, EveryAnswerIsTheLoneOneAndEveryRowIsFreed) {
  int64_t preempted = 0;
  for (unsigned seed = 0; seed < 100 && !HasFailure(); ++seed) preempted += random_arrivals(seed);
  EXPECT_GT(preempted, 20);
}

TEST(EngineBatch, WhatAnAnswerMayComeToCostsNoOtherItsRow) {
  FakeEngine engine;
  EngineBatch batch(engine, kMaxPositions, options(4, 4 * 128));
  std::vector<std::unique_ptr<Asked>> requests;
  for (int64_t i = 0; i < 4; ++i) {
    requests.push_back(std::make_unique<Asked>(endless(ids_from(1 + 10 * i % 30, 20), int64_t{1} << 60)));
    ASSERT_TRUE(requests.back()->admit(&batch));
  }
  std::vector<Asked*> all;
  for (const auto& request : requests) all.push_back(request.get());
  for (int i = 0; i < 10; ++i) step(&batch, all);
  EXPECT_EQ(batch.stats().preempted, 0);
  EXPECT_EQ(batch.stats().decoded_rows, 4 * batch.stats().decode_steps);
}

// The image is needed again, and what the answer has of image tokens are none of its.
TEST(EngineBatch, ARequestThatGivesUpItsRowGoesOnAsIfItHadNot) {
  for (const bool keep : {false, true}) {
    std::vector<int64_t> shown = ids_from(10, 20);
    shown.insert(shown.end(), {0, 0});
    Question first = endless(ids_from(20, 40), 120), second = endless(shown, 120, {120});
    for (Question* asked : {&first, &second}) {
      asked->sampling.temperature = 1.3;
      asked->sampling.seed = 11;
      asked->sampling.logit_bias.emplace_back(0, 4);
    }
    FakeEngine engine;
    EngineBatch batch(engine, kMaxPositions, options(4, 2 * 128, keep));
    Asked old(first), young(second), late(question({1, 2, 3}, 5));
    ASSERT_TRUE(old.admit(&batch) && young.admit(&batch));
    for (int i = 0; i < 100; ++i) step(&batch, {&old, &young});
    EXPECT_EQ(batch.stats().preempted, 1);
    EXPECT_FALSE(late.admit(&batch)) << "a new request goes before one that gave up its row";
    finish(&batch, {&old, &young});
    EXPECT_EQ(old.tokens, plain_answer(first));
    EXPECT_EQ(young.tokens, plain_answer(second));
    EXPECT_EQ(young.tokens.size(), 120u);
    EXPECT_GT(std::count(young.tokens.begin(), young.tokens.begin() + 60, 0), 0);
    EXPECT_EQ(batch.stats().prompt_tokens, 40 + 22);
    EXPECT_EQ(batch.stats().reused_tokens, 0);
    EXPECT_EQ(batch.stats().prefix_misses, 2);
    EXPECT_TRUE(late.admit(&batch));
  }
}

TEST(EngineBatch, AnAnswerEndsWhereTheBudgetOfTheCacheDoes) {
  FakeEngine engine;
  EngineBatch batch(engine, kMaxPositions, options(2, 64));
  Asked request(endless(ids_from(1, 60), 120)), too_long(question(ids_from(1, 64), 5));
  ASSERT_TRUE(request.admit(&batch));
  finish(&batch, {&request});
  EXPECT_EQ(request.tokens, plain_answer(endless(ids_from(1, 60), 4)));
  EXPECT_EQ(request.answer->finish_reason, FinishReason::kContext);
  EXPECT_THROW(too_long.admit(&batch), Error);
}

TEST(EngineBatch, AFirstTokenIsHandedOutBeforeTheNextPromptIsPrefilled) {
  FakeEngine engine;
  EngineBatch batch(engine, kMaxPositions, options(4, kAnyBytes));
  Asked first(question({1, 2, 3}, 5)), second(question({4, 5}, 5));
  ASSERT_TRUE(first.admit(&batch) && second.admit(&batch));
  EXPECT_EQ(batch.step().size(), 1u);
  EXPECT_EQ(batch.step().size(), 1u);
  EXPECT_EQ(batch.step().size(), 2u);
}

TEST(EngineBatch, PromptsTakeTurns) {
  FakeEngine engine;
  EngineBatch batch(engine, kMaxPositions, options(4, kAnyBytes, false, 8));
  Asked longer(question(ids_from(1, 40), 5)), shorter(question({1, 2, 3}, 5));
  ASSERT_TRUE(longer.admit(&batch) && shorter.admit(&batch));
  for (int i = 0; i < 2; ++i) step(&batch, {&longer, &shorter});
  EXPECT_EQ(longer.tokens.size(), 0u);
  EXPECT_EQ(shorter.tokens.size(), 1u);
}

TEST(EngineBatch, AStepThatFailsIsAnErrorOfEveryRequestInItAndOfNoLaterOne) {
  FakeEngine engine;
  EngineBatch batch(engine, kMaxPositions, options(4, kAnyBytes));
  Asked first(question({1, 2, 3}, 5)), second(question({4, 5}, 5)), later(question({6, 7}, 5));
  ASSERT_TRUE(first.admit(&batch) && second.admit(&batch));
  for (int i = 0; i < 2; ++i) step(&batch, {&first, &second});
  engine.failing = true;
  const std::vector<EngineBatch::Outcome> outcomes = batch.step();
  engine.failing = false;
  ASSERT_EQ(outcomes.size(), 2u);
  for (const auto& outcome : outcomes) EXPECT_TRUE(std::holds_alternative<std::exception_ptr>(outcome.result));
  EXPECT_TRUE(batch.empty());
  ASSERT_TRUE(later.admit(&batch));
  finish(&batch, {&later});
  EXPECT_EQ(later.tokens, plain_answer(later.question));
}

}  // namespace
}  // namespace r1v
