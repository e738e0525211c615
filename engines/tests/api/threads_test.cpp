// Threads that share one engine through r1v.hpp, on the bundle R1V_BUNDLE: tests/engines runs this with sanitizers.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "r1v/r1v.hpp"

namespace {

using r1v::api::Answer;
using r1v::api::Engine;
using r1v::api::Event;
using r1v::api::Result;
using r1v::api::Turn;

// An image of one color, different from thread to thread.
Turn question(int number) {
  Turn turn{"user", "What do you see?", {}};
  const auto value = static_cast<uint8_t>(40 * number);
  turn.images.push_back({"", std::vector<uint8_t>(3 * 200 * 100, value), 200, 100});
  return turn;
}

r1v::api::RequestOptions short_answers(const Engine& engine) {
  r1v::api::RequestOptions options;
  options.sampling = *engine.default_sampling();
  options.sampling->max_new_tokens = 12;
  return options;
}

class Threads : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("R1V_BUNDLE") == nullptr) GTEST_SKIP() << "R1V_BUNDLE is not set: tests/engines runs this test";
  }
};

TEST_F(Threads, GetTheAnswersThatEachWouldGetAlone) {
  Result<Engine> engine = Engine::open(std::getenv("R1V_BUNDLE"));
  ASSERT_TRUE(engine) << engine.error().message;
  const r1v::api::RequestOptions options = short_answers(*engine);
  constexpr int kThreads = 4;
  std::vector<Answer> together(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      Result<Answer> answer = engine->answer({question(i)}, options);
      if (answer) together[static_cast<size_t>(i)] = *answer;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kThreads; ++i) {
    Result<Answer> alone = engine->answer({question(i)}, options);
    ASSERT_TRUE(alone) << alone.error().message;
    EXPECT_EQ(together[static_cast<size_t>(i)].token_ids, alone->token_ids);
  }
}

TEST_F(Threads, EndEachOthersAnswers) {
  Result<Engine> engine = Engine::open(std::getenv("R1V_BUNDLE"));
  ASSERT_TRUE(engine) << engine.error().message;
  Result<r1v::api::Request> request = engine->start({question(1)}, short_answers(*engine));
  ASSERT_TRUE(request) << request.error().message;
  std::thread canceller([&] { request->cancel(); });
  bool finished = false;
  while (!finished) {
    Result<Event> event = request->next();
    ASSERT_TRUE(event) << event.error().message;
    finished = event->finished;
  }
  canceller.join();
  EXPECT_TRUE(request->answer());
}

TEST(Errors, BelongToTheThreadThatMetThem) {
  EXPECT_FALSE(Engine::open("/no/such/bundle"));
  const std::string here = r1v_error_message();
  std::thread([] { EXPECT_STREQ(r1v_error_message(), ""); }).join();
  EXPECT_EQ(r1v_error_message(), here);
  EXPECT_NE(here.find("This is not a bundle."), std::string::npos);
}

}  // namespace
