// Where an allocation fails, a question ends with an error, and the next one is answered as ever.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>

#include "r1v/r1v.h"
#include "tests/memory/failing_allocations.h"
#include "tests/runner/batching/server.h"

namespace r1v {
namespace {

// The answer's tokens, or nothing where there was an error, which is one of memory.
std::optional<std::vector<int64_t>> answered(Server* server, const Question& question) {
  try {
    const auto generation = server->start(question);
    while (const std::optional<AnswerEvent> event = generation->next()) {
      if (event->answer) return event->answer->token_ids;
    }
    ADD_FAILURE() << "the events ended without an answer";
  } catch (const std::bad_alloc&) {
  }
  return std::nullopt;
}

class OutOfMemory : public ::testing::TestWithParam<Failing> {};

TEST_P(OutOfMemory, EveryAllocationOfAQuestionMayFail) {
  BatchingOptions options;
  options.max_rows = 2;
  options.image_cache_bytes = 64;
  Server server(options);
  int64_t errors = 0;
  for (int64_t succeeding = 0, failed = 1; failed > 0; ++succeeding) {
    const Question asked = question({5, 0, 0, 6, 1 + succeeding % 7, 8}, 4, {static_cast<uint8_t>(succeeding % 200)});
    const std::vector<int64_t> expected = plain_answer(asked);
    std::optional<std::vector<int64_t>> found;
    {
      const FailingAllocations failing(succeeding, GetParam());
      found = answered(&server, asked);
      failed = failing.failed();
    }
    // An allocation after the last event, or of the loop for a later one, harms no answer.
    if (found) {
      ASSERT_EQ(*found, expected) << succeeding;
    }
    errors += found ? 0 : 1;
    ASSERT_EQ(answered(&server, asked), expected) << "the question after the error, " << succeeding;
  }
  EXPECT_GE(errors, 50);
  EXPECT_GE(server.loop.stats().failed, 20);  // in the loop; the others on the way to it
}

TEST_P(OutOfMemory, ALoopThatEndsEndsItsRequests) {
  for (int64_t succeeding = 0; succeeding < 60; ++succeeding) {
    auto server = std::make_unique<Server>(BatchingOptions{});
    std::vector<JobPointer> jobs;
    for (int i = 0; i < 3; ++i) {
      jobs.push_back(job_of(question({1, 0, 0, 3}, 400, {9})));
      server->loop.submit(jobs.back());
    }
    {
      const FailingAllocations failing(succeeding, GetParam());
      server.reset();
    }
    for (const JobPointer& job : jobs) {
      try {
        while (job->next()) {
        }
      } catch (const std::bad_alloc&) {
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Allocations, OutOfMemory, ::testing::Values(Failing::kAll, Failing::kOne));

// The C API on the bundle R1V_BUNDLE: tests/engines runs this.
// ONNX Runtime ends the process where it has no memory: libr1v's own allocations fail, not those that it makes.
const void* const kLibrary = reinterpret_cast<const void*>(&r1v_version);

class OutOfMemoryInTheLibrary : public ::testing::TestWithParam<Failing> {
 protected:
  void SetUp() override {
    if (std::getenv("R1V_BUNDLE") == nullptr) GTEST_SKIP() << "R1V_BUNDLE is not set: tests/engines runs this test";
    r1v_engine_options_init(&options_, sizeof options_);
    options_.threads = 1;
  }

  r1v_engine_options options_;
};

struct Outcome {
  r1v_status status;
  char message[400];
  int64_t tokens[8];
  size_t count;
};

// Asks about an image, and takes no memory itself.
Outcome asked(r1v_engine* engine) {
  static const uint8_t gray[3 * 40 * 40] = {};
  r1v_image image;
  r1v_image_init(&image, sizeof image);
  image.data = gray;
  image.size = sizeof gray;
  image.width = image.height = 40;
  r1v_turn turn;
  r1v_turn_init(&turn, sizeof turn);
  turn.role = "user";
  turn.text = "What do you see?";
  turn.images = &image;
  turn.image_count = 1;
  r1v_request_options options;
  r1v_request_options_init(&options, sizeof options);
  options.turns = &turn;
  options.turn_count = 1;
  r1v_sampling sampling;
  options.sampling = &sampling;
  r1v_request* request = nullptr;
  r1v_event event;
  r1v_event_init(&event, sizeof event);
  r1v_answer answer;
  r1v_answer_init(&answer, sizeof answer);

  Outcome outcome{};
  r1v_status& status = outcome.status;
  status = r1v_sampling_init_greedy(engine, &sampling, sizeof sampling);
  sampling.max_new_tokens = 3;
  if (status == R1V_OK) status = r1v_request_start(engine, &options, &request);
  while (status == R1V_OK && event.finished == 0) status = r1v_request_next(request, &event);
  if (status == R1V_OK) status = r1v_request_answer(request, &answer);
  outcome.count = std::min<size_t>(answer.token_count, 8);
  for (size_t i = 0; i < outcome.count; ++i) outcome.tokens[i] = answer.token_ids[i];
  std::strncpy(outcome.message, r1v_error_message(), sizeof outcome.message - 1);
  r1v_request_free(request);
  return outcome;
}

void expect_error(const Outcome& outcome, int64_t succeeding) {
  EXPECT_STRNE(outcome.message, "") << succeeding;
  EXPECT_EQ(outcome.status, R1V_MEMORY_ERROR) << outcome.message;
}

// Some of many: an allocation, then a fifth further on.
int64_t next_of(int64_t succeeding) { return succeeding + 1 + succeeding / 5; }

TEST_P(OutOfMemoryInTheLibrary, AQuestionIsAnErrorAndTheNextIsAnswered) {
  r1v_engine* engine = nullptr;
  ASSERT_EQ(r1v_engine_open(std::getenv("R1V_BUNDLE"), &options_, &engine), R1V_OK) << r1v_error_message();
  const Outcome expected = asked(engine);
  ASSERT_EQ(expected.count, 3u);
  const auto is_expected = [&](const Outcome& outcome) {
    return outcome.status == R1V_OK && std::equal(outcome.tokens, outcome.tokens + 3, expected.tokens);
  };
  int64_t errors = 0;
  for (int64_t succeeding = 0, failed = 1; failed > 0; succeeding = next_of(succeeding)) {
    Outcome outcome{};
    {
      const FailingAllocations failing(succeeding, GetParam(), kLibrary);
      outcome = asked(engine);
      failed = failing.failed();
    }
    if (!is_expected(outcome)) {
      ++errors;
      expect_error(outcome, succeeding);
    }
    ASSERT_TRUE(is_expected(asked(engine))) << "the question after the error, " << succeeding;
  }
  EXPECT_GT(errors, 10);
  r1v_engine_free(engine);
}

INSTANTIATE_TEST_SUITE_P(Allocations, OutOfMemoryInTheLibrary, ::testing::Values(Failing::kAll, Failing::kOne));

}  // namespace
}  // namespace r1v
