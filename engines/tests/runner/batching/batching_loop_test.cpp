#include "runner/batching/batching_loop.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "tests/runner/batching/server.h"

namespace r1v {
namespace {

Answer whole(Generation* generation) {
  std::vector<int64_t> tokens;
  while (std::optional<AnswerEvent> event = generation->next()) {
    if (event->token_id) tokens.push_back(*event->token_id);
    if (!event->answer) continue;
    EXPECT_EQ(event->answer->token_ids, tokens);
    EXPECT_FALSE(generation->next());
    return *event->answer;
  }
  ADD_FAILURE() << "the events ended without an answer";
  return {};
}

BatchingOptions small(int64_t rows, int64_t chunk) {
  BatchingOptions options;
  options.max_rows = rows;
  options.prefill_chunk = chunk;
  return options;
}

TEST(BatchingLoop, EveryAnswerIsTheLoneOneUnderAnyMixOfArrivals) {
  int64_t preempted = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    BatchingOptions options = small(1 + seed % 5, 1 + static_cast<int64_t>(random() % 40));
    options.cache_bytes = 2 * 320 * (1 + static_cast<int64_t>(random() % 3));  // 2 bytes a slot
    options.image_cache_bytes = random() % 2 == 0 ? 0 : 64;
    Server server(options);
    std::vector<Question> questions;
    std::vector<std::unique_ptr<Generation>> answers;
    const bool growing = seed % 2 == 0;
    std::unique_lock<std::mutex> no_steps(server.engine.stepping, std::defer_lock);
    if (growing) no_steps.lock();  // so that they wait for rows together
    for (int i = 0; i < 12; ++i) {
      questions.push_back(random_question(&random, growing));
      answers.push_back(server.start(questions.back(), {std::to_string(random() % 3), std::nullopt}));
      if (!growing && random() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
    }
    if (growing) no_steps.unlock();
    for (size_t i = 0; i < answers.size(); ++i) {
      const bool cancelled = random() % 4 == 0;
      if (cancelled) answers[i]->cancel();
      const Answer answer = whole(answers[i].get());
      std::vector<int64_t> expected = plain_answer(questions[i]);
      if (answer.finish_reason == FinishReason::kCancelled) {
        ASSERT_TRUE(cancelled);
        expected.resize(std::min(expected.size(), answer.token_ids.size()));
      }
      ASSERT_EQ(answer.token_ids, expected) << "seed " << seed << ", question " << i;
    }
    const BatchingStats stats = server.loop.stats();
    EXPECT_EQ(stats.queued + stats.running, 0);
    EXPECT_EQ(stats.finished, 12);
    EXPECT_LE(stats.cache_bytes, options.cache_bytes);
    preempted += stats.preempted;
  }
  EXPECT_GT(preempted, 0);
}

TEST(BatchingLoop, OverACacheThatStaysWhereItIsRequestsComeOneAfterTheOther) {
  Server server(small(4, 5));
  server.engine.limits.movable = false;
  std::mt19937 random(7);
  std::vector<Question> questions;
  std::vector<std::unique_ptr<Generation>> answers;
  for (int i = 0; i < 12; ++i) {
    questions.push_back(random_question(&random, false));
    answers.push_back(server.start(questions.back()));
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSERT_EQ(whole(answers[i].get()).token_ids, plain_answer(questions[i]));
  }
  EXPECT_EQ(server.loop.stats().decoded_rows, server.loop.stats().decode_steps);
}

TEST(BatchingLoop, RequestsAreDecodedTogetherAndAPrefixIsComputedOnce) {
  Server server(small(4, 512));
  const Question shown = question({5, 0, 0, 6, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}, 30, {3});
  whole(server.start(shown).get());
  std::vector<std::unique_ptr<Generation>> answers;
  {
    const std::lock_guard<std::mutex> no_steps(server.engine.stepping);
    for (int i = 0; i < 4; ++i) answers.push_back(server.start(shown));
    const auto prepared = [](const BatchingStats& stats) { return stats.ready + stats.running; };
    while (prepared(server.loop.stats()) < 4) std::this_thread::yield();
  }
  for (const auto& answer : answers) whole(answer.get());
  EXPECT_GE(server.loop.stats().reused_tokens, 4 * 19);
  EXPECT_GT(server.loop.stats().decoded_rows, server.loop.stats().decode_steps);
}

TEST(BatchingLoop, AFullQueueRefusesAndWhatIsWrongWithOneRequestTouchesNoOther) {
  BatchingOptions options = small(1, 512);
  options.max_queued = 2;
  options.cache_bytes = 2 * 64;
  Server server(options);
  const Question fine = question({1, 2, 3}, 5);
  const Question too_few_images = question({1, 0, 0, 0}, 5, {9});
  const auto first = server.start(fine), wrong = server.start(too_few_images);
  std::vector<std::unique_ptr<Generation>> more;
  try {
    for (;;) more.push_back(server.start(question({1, 2}, 40)));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kQueueFull);
  }
  EXPECT_THROW(wrong->next(), Error);
  EXPECT_FALSE(wrong->next());
  EXPECT_EQ(whole(first.get()).token_ids, plain_answer(fine));
  for (const auto& each : more) whole(each.get());
  EXPECT_EQ(server.loop.stats().refused, 1);
  EXPECT_EQ(server.loop.stats().failed, 1);
}

TEST(BatchingLoop, ARequestThatNoRowCanHoldIsRefused) {
  BatchingOptions options = small(2, 512);
  options.cache_bytes = 2 * 63;
  Server server(options);
  EXPECT_THROW(server.start(question({1, 2, 3}, 20))->next(), Error);
}

TEST(BatchingLoop, TilesOfConcurrentRequestsGoTogether) {
  Server server(small(8, 512));
  std::vector<Question> questions;
  std::vector<std::unique_ptr<Generation>> answers;
  {
    const std::lock_guard<std::mutex> no_runs(server.engine.encoding);
    for (const uint8_t color : {10, 60, 120, 180}) {
      questions.push_back(question({1, 0, 0, 2}, 5, {color}));
      answers.push_back(server.start(questions.back()));
    }
  }
  for (size_t i = 0; i < answers.size(); ++i) EXPECT_EQ(whole(answers[i].get()).token_ids, plain_answer(questions[i]));
  EXPECT_EQ(server.loop.stats().vision_tiles, 4);
  EXPECT_LE(server.loop.stats().vision_runs, 2);  // the first may have begun before the others came
}

TEST(BatchingLoop, ARequestThatIsCancelledWhileItsImagesAreEncodedTouchesNoOther) {
  Server server(small(8, 512));
  const Question both = question({1, 0, 0, 2, 0, 0}, 5, {60, 120}), own = question({1, 0, 0, 3}, 5, {180});
  std::unique_ptr<Generation> cancelled, same, other;
  {
    const std::lock_guard<std::mutex> no_runs(server.engine.encoding);
    cancelled = server.start(both);
    same = server.start(both);
    other = server.start(own);
    cancelled->cancel();
    EXPECT_EQ(whole(cancelled.get()).finish_reason, FinishReason::kCancelled);
  }
  EXPECT_EQ(whole(same.get()).token_ids, plain_answer(both));
  EXPECT_EQ(whole(other.get()).token_ids, plain_answer(own));
  EXPECT_EQ(server.loop.stats().finished, 3);
}

TEST(BatchingLoop, AnImageThatFailsEndsItsRequestsOnly) {
  Server server(small(8, 512));
  server.engine.broken_above = 0.5f;
  const Question fine = question({1, 0, 0, 2}, 5, {60}), wrong = question({1, 0, 0, 2, 0, 0}, 5, {60, 200});
  std::vector<std::unique_ptr<Generation>> answers;
  {
    const std::lock_guard<std::mutex> no_runs(server.engine.encoding);
    for (const Question* asked : {&fine, &wrong, &fine, &wrong}) answers.push_back(server.start(*asked));
  }
  EXPECT_EQ(whole(answers[0].get()).token_ids, plain_answer(fine));
  EXPECT_THROW(answers[1]->next(), Error);
  EXPECT_EQ(whole(answers[2].get()).token_ids, plain_answer(fine));
  EXPECT_THROW(answers[3]->next(), Error);
  EXPECT_EQ(server.loop.stats().failed, 2);
  EXPECT_EQ(server.loop.stats().finished, 2);
}

TEST(BatchingLoop, ADeadlineEndsAnAnswerWithWhatItHas) {
  Server server(small(1, 512));
  const auto past = std::chrono::steady_clock::now() - std::chrono::seconds(1);
  EXPECT_EQ(whole(server.start(question({1, 2, 3}, 5), {"", past}).get()).finish_reason, FinishReason::kDeadline);
}

TEST(BatchingLoop, WhatIsUnfinishedAtTheEndEndsAsCancelled) {
  auto server = std::make_unique<Server>(small(1, 512));
  std::vector<JobPointer> jobs;
  for (int i = 0; i < 20; ++i) {
    jobs.push_back(job_of(question({1, 2, 3}, 50)));
    server->loop.submit(jobs.back());
  }
  server.reset();
  for (const JobPointer& job : jobs) {
    std::optional<AnswerEvent> event;
    while (!event || !event->answer) {
      event = job->next();
      ASSERT_TRUE(event);
    }
    EXPECT_NE(event->answer->finish_reason, FinishReason::kDeadline);
  }
}

}  // namespace
}  // namespace r1v
