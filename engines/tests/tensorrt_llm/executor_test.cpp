// TensorRT-LLM's executor in the batching loop, on libraries that stand in for TensorRT-LLM.
#include "backends/tensorrt_llm/executor.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "runner/batching/batching_loop.h"
#include "tests/error_message.h"
#include "tests/runner/batching/server.h"
#include "tests/tensorrt_llm/llm_bundle.h"
#include "tests/tensorrt_llm/stand_in/controls.h"

namespace r1v {
namespace {

using stand_in::controls, stand_in::Controls, stand_in::SeenRequest;
using trtllm::EngineConfig, trtllm::ExecutorGenerator, trtllm::Library;

std::string libraries(const std::string& version) {
  return std::string(R1V_STAND_INS) + "/tensorrt-llm-" + version + "/libs";
}

// Sets what the executor is to do.
template <typename Change>
void set(const Change& change) {
  const std::lock_guard<std::mutex> lock(controls().mutex);
  change(controls());
}

// One thing that the executor has seen or counted.
template <typename Get>
auto seen(const Get& get) {
  const std::lock_guard<std::mutex> lock(controls().mutex);
  return get(static_cast<const Controls&>(controls()));
}

SeenRequest last_request() {
  return seen([](const Controls& all) { return all.requests.at(all.requests.size() - 1); });
}

class TensorRtLlm : public ::testing::Test {
 protected:
  void SetUp() override {
    ::setenv("R1V_TENSORRT_LLM_MODULE", (std::string(R1V_STAND_INS) + "/libr1v_tensorrt_llm.so").c_str(), 1);
    set([](Controls& all) {
      all.fail_open = all.fail_enqueue = all.fail_wait = all.fail_request = all.worker = "";
      all.end_by.reset();
      all.most_tokens.reset();
      all.requests.clear();
      all.cancelled.clear();
      all.most_together = 0;
    });
    options_.max_rows = 4;
  }

  void TearDown() override {
    loop_.reset();
    generator_.reset();
    ::unsetenv("R1V_TENSORRT_LLM_MODULE");
    EXPECT_EQ(seen([](const Controls& all) { return all.executors; }), 0);
  }

  std::unique_ptr<ExecutorGenerator> open(bool reuse_prefixes = true) {
    const EngineConfig config = trtllm::read_engine_config(made_.bundle, made_.engine());
    return std::make_unique<ExecutorGenerator>(Library(libraries("1.2.0")), config, made_.engine(), 0, reuse_prefixes);
  }

  BatchingLoop& loop() {
    if (loop_ == nullptr) {
      generator_ = open();
      loop_ = std::make_unique<BatchingLoop>(*generator_, encoder_, std::min(kMaxPositions, generator_->max_tokens()),
                                             options_);
    }
    return *loop_;
  }

  std::unique_ptr<Generation> start(const Question& question, JobOptions options = {}) {
    return std::make_unique<Generation>(loop(), job_of(question, std::move(options)));
  }

  std::string refusal() {
    return error_message([&] { open(); });
  }

  LlmBundle made_;
  BatchingOptions options_;
  FakeEngine vision_;
  ImageEncoder encoder_{vision_, one_tile(), 1, 0};
  std::unique_ptr<ExecutorGenerator> generator_;
  std::unique_ptr<BatchingLoop> loop_;
};

Answer whole(Generation* generation) {
  std::vector<int64_t> tokens;
  while (const std::optional<AnswerEvent> event = generation->next()) {
    if (event->token_id) tokens.push_back(*event->token_id);
    if (!event->answer) continue;
    EXPECT_EQ(event->answer->token_ids, tokens);
    return *event->answer;
  }
  ADD_FAILURE() << "the events ended without an answer";
  return {};
}

// A question that the model would answer at length.
Question long_question() {
  for (int64_t id = 1;; ++id) {
    Question asked = question({3, 4, id}, 300);
    if (plain_answer(asked).size() > 30) return asked;
  }
}

TEST_F(TensorRtLlm, SaysWhatItIs) {
  EXPECT_EQ(open()->description(), "tensorrt-llm 1.2.0, executor");
  EXPECT_EQ(open()->max_tokens(), 512);
}

TEST_F(TensorRtLlm, ManyRequestsAreAnsweredTogetherAndEachAsIfItWereAlone) {
  std::mt19937 random(3);
  std::vector<Question> questions;
  std::vector<std::unique_ptr<Generation>> answers;
  set([](Controls& all) { all.most_tokens = 0; });  // until all rows are taken
  for (int i = 0; i < 24; ++i) {
    Question asked = random_question(&random, i % 3 == 0);
    asked.sampling = question({}, asked.sampling.max_new_tokens).sampling;  // greedy
    questions.push_back(asked);
    answers.push_back(start(asked));
  }
  while (loop().stats().running < options_.max_rows) std::this_thread::yield();
  set([](Controls& all) { all.most_tokens.reset(); });
  for (size_t i = 0; i < answers.size(); ++i)
    EXPECT_EQ(whole(answers[i].get()).token_ids, plain_answer(questions[i])) << i;
  EXPECT_EQ(seen([](const Controls& all) { return all.most_together; }), 3);  // the engine's max_batch_size
  EXPECT_TRUE(seen([](const Controls& all) { return all.cancelled.empty(); }));
  const BatchingStats stats = loop().stats();
  EXPECT_EQ(stats.finished, 24);
  EXPECT_EQ(stats.queued + stats.running + stats.failed, 0);
  EXPECT_GT(stats.generated_tokens, 0);
}

TEST_F(TensorRtLlm, TokensAreHandedOutBeforeTheAnswerEndsAndCancellingEndsIt) {
  const Question asked = long_question();
  set([](Controls& all) { all.most_tokens = 3; });
  const auto generation = start(asked);
  for (size_t i = 0; i < 3; ++i) {
    const std::optional<AnswerEvent> event = generation->next();
    EXPECT_EQ(event->token_id, plain_answer(asked)[i]);
    EXPECT_FALSE(event->answer);
  }
  generation->cancel();
  const std::optional<AnswerEvent> last = generation->next();
  ASSERT_TRUE(last && last->answer);
  EXPECT_EQ(last->answer->finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(last->answer->token_ids.size(), 3u);
  EXPECT_EQ(seen([](const Controls& all) { return all.cancelled.size(); }), 1u);
  set([](Controls& all) { all.most_tokens.reset(); });
  EXPECT_EQ(whole(start(asked).get()).token_ids, plain_answer(asked));
}

TEST_F(TensorRtLlm, ADeadlineEndsAnAnswerThatHasNoTokenYet) {
  set([](Controls& all) { all.most_tokens = 0; });
  JobOptions options;
  options.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
  EXPECT_EQ(whole(start(long_question(), options).get()).finish_reason, FinishReason::kDeadline);
}

TEST_F(TensorRtLlm, UnfinishedAnswersEndWithTheLoop) {
  set([](Controls& all) { all.most_tokens = 2; });
  const JobPointer job = job_of(long_question());
  loop().submit(job);
  while (loop().stats().running == 0) std::this_thread::yield();
  loop_.reset();
  std::optional<Answer> answer;
  while (const std::optional<AnswerEvent> event = job->next()) answer = event->answer;
  EXPECT_EQ(answer->finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(seen([](const Controls& all) { return all.cancelled.size(); }), 1u);
}

TEST_F(TensorRtLlm, AStopStringEndsTheAnswerAndGivesTheRequestUp) {
  Question asked = long_question();
  const std::vector<int64_t> plain = plain_answer(asked);
  const std::string stop(1, static_cast<char>(plain[10]));  // tokens are bytes
  const auto end = std::find(plain.begin(), plain.end(), plain[10]) + 1;
  static const Tokenizer tokenizer = byte_tokenizer();
  AnswerText text(Detokenizer(tokenizer), {{stop}, true}, std::nullopt, {"<think>", "</think>"});
  auto job =
      std::make_shared<Job>(Prompt{asked.ids, {}, 0, {}}, asked.sampling,
                            AnswerStream(std::move(text), {kStopId}, asked.sampling.max_new_tokens), JobOptions{});
  Generation generation(loop(), job);
  const Answer answer = whole(&generation);
  EXPECT_EQ(answer.finish_reason, FinishReason::kStop);
  EXPECT_EQ(answer.token_ids, (std::vector<int64_t>(plain.begin(), end)));
  EXPECT_EQ(answer.text, std::string(plain.begin(), end - 1));
  EXPECT_EQ(seen([](const Controls& all) { return all.cancelled.size(); }), 1u);
}

TEST_F(TensorRtLlm, AnErrorOfTheExecutorEndsItsRequestsAndNoLaterOne) {
  const Question asked = question({5, 6}, 3);
  const auto failure = [&] {
    return error_message([&] {
      const auto generation = start(asked);
      while (generation->next()) {
      }
    });
  };
  set([](Controls& all) { all.fail_request = "the KV cache is full\n at line 7"; });
  EXPECT_NE(failure().find("found:    the KV cache is full"), std::string::npos);
  EXPECT_EQ(failure().find("line 7"), std::string::npos);
  set([](Controls& all) { all.fail_request = "", all.fail_enqueue = "the prompt is too long"; });
  EXPECT_NE(failure().find("refuses a request"), std::string::npos);
  set([](Controls& all) { all.fail_enqueue = "", all.fail_wait = "a worker has died"; });
  EXPECT_NE(failure().find("a worker has died"), std::string::npos);
  set([](Controls& all) { all.fail_wait = "", all.end_by = tensorrt_llm::executor::FinishReason::kTIMED_OUT; });
  EXPECT_NE(failure().find("aborted"), std::string::npos);
  set([](Controls& all) { all.end_by.reset(); });
  EXPECT_EQ(whole(start(asked).get()).token_ids, plain_answer(asked));
  EXPECT_EQ(loop().stats().failed, 5);
}

TEST_F(TensorRtLlm, WhatIsAskedForReachesTheExecutor) {
  Question asked = question({5, 0, 0, 6}, 4, {60});
  whole(start(asked).get());
  SeenRequest request = last_request();
  EXPECT_EQ(request.token_ids, (std::vector<int32_t>{5, 40, 41, 6}));
  EXPECT_EQ(request.table.size(), 4u);
  EXPECT_NEAR(request.table[0], embedding_of(60), 1e-3);  // in the engine's bfloat16
  EXPECT_EQ(request.extra_ids[0], 0u);
  EXPECT_NE(request.extra_ids[1], 0u);
  EXPECT_EQ(request.max_tokens, 4);
  EXPECT_EQ(request.end_id, kStopId);
  EXPECT_EQ(request.pad_id, kStopId);
  EXPECT_TRUE(request.stop_words.empty());
  EXPECT_EQ(request.top_k, 1);
  EXPECT_FALSE(request.top_p || request.temperature || request.seed || request.repetition_penalty);

  asked.sampling.temperature = 0.5;
  asked.sampling.top_p = 0.75;
  asked.sampling.seed = 11;
  asked.sampling.repetition_penalty = 1.25;
  whole(start(asked).get());
  request = last_request();
  EXPECT_EQ(request.top_k, 0);
  EXPECT_EQ(request.top_p, 0.75f);
  EXPECT_EQ(request.temperature, 0.5f);
  EXPECT_EQ(request.seed, 11u);
  EXPECT_EQ(request.repetition_penalty, 1.25f);

  ExecutorGenerator& generator = *generator_;
  loop_.reset();
  generator.start({5}, {}, asked.sampling, {39, 7, 38});
  EXPECT_EQ(last_request().end_id, 7);
  EXPECT_EQ(last_request().stop_words, (std::list<std::vector<int32_t>>{{38}, {39}}));
  EXPECT_TRUE(last_request().extra_ids.empty());
  generator.start({5}, {}, asked.sampling, {});
  EXPECT_FALSE(last_request().end_id);
}

TEST_F(TensorRtLlm, AStopTokenIsPartOfTheAnswerWhicheverWayTheExecutorStops) {
  const Question asked = long_question();
  const std::vector<int64_t> plain = plain_answer(asked);
  const std::unique_ptr<ExecutorGenerator> generator = open();
  for (const std::vector<int64_t>& stops : {std::vector<int64_t>{plain[4]}, {plain[4], -1}}) {
    std::vector<int64_t> tokens;
    std::optional<FinishReason> reason;
    generator->start(asked.ids, {}, asked.sampling, stops);
    while (!reason) {
      for (const Generated& each : generator->wait(std::chrono::milliseconds(20))) {
        tokens.insert(tokens.end(), each.token_ids.begin(), each.token_ids.end());
        reason = each.reason;
      }
    }
    const auto end = std::find(plain.begin(), plain.end(), plain[4]) + 1;
    EXPECT_EQ(tokens, (std::vector<int64_t>(plain.begin(), end)));
    EXPECT_EQ(reason, FinishReason::kStop);
  }
}

TEST_F(TensorRtLlm, ImagesAtTheSamePlaceAreNotTakenForEachOther) {
  for (const uint8_t color : {uint8_t{60}, uint8_t{180}, uint8_t{60}}) {
    const Question asked = question({5, 0, 0, 6, 7}, 20, {color});
    EXPECT_EQ(whole(start(asked).get()).token_ids, plain_answer(asked)) << int{color};
  }
}

TEST_F(TensorRtLlm, PromptsAreReusedWhereTheEngineCan) {
  const auto reuses = [&](bool reuse_prefixes = true) {
    made_.config["pretrained_config"] = made_.checkpoint;
    made_.write();
    open(reuse_prefixes);
    return seen([](const Controls& all) { return all.reuses_blocks; });
  };
  EXPECT_TRUE(reuses());
  EXPECT_FALSE(reuses(false));
  made_.checkpoint["quantization"]["kv_cache_quant_algo"] = "FP8";
  EXPECT_FALSE(reuses());
  made_.checkpoint["quantization"]["quant_algo"] = "FP8";
  EXPECT_TRUE(reuses());
  made_.checkpoint["dtype"] = "float32";
  EXPECT_FALSE(reuses());
}

TEST_F(TensorRtLlm, EachRankOfSeveralIsAProcessOfTheLibrarysOwnProgram) {
  made_.checkpoint["mapping"] = {{"world_size", 2}, {"tp_size", 2}, {"pp_size", 1}};
  made_.config["pretrained_config"] = made_.checkpoint;
  made_.write();
  open();
  const std::string worker = seen([](const Controls& all) { return all.worker; });
  EXPECT_EQ(worker, std::string(R1V_STAND_INS) + "/tensorrt-llm-1.2.0/bin/executorWorker");
  std::filesystem::remove(made_.engine() / "rank1.engine");
  EXPECT_NE(refusal().find("rank1.engine"), std::string::npos);
}

TEST_F(TensorRtLlm, WhatTheExecutorLacksIsRefusedByItsName) {
  const auto refusal_of = [&](const char* name, const auto& change) {
    Question asked = question({5}, 3);
    change(&asked.sampling);
    const std::string message = error_message([&] { whole(start(asked).get()); });
    EXPECT_NE(message.find(std::string("sampling.") + name), std::string::npos) << message;
  };
  refusal_of("presence_penalty", [](Sampling* sampling) { sampling->presence_penalty = 1; });
  refusal_of("frequency_penalty", [](Sampling* sampling) { sampling->frequency_penalty = 1; });
  refusal_of("min_p", [](Sampling* sampling) { sampling->min_p = 0.1; });
  refusal_of("logit_bias", [](Sampling* sampling) { sampling->logit_bias = {{3, 1.0}}; });
  refusal_of("logprobs", [](Sampling* sampling) { sampling->logprobs = 0; });
  refusal_of("max_reasoning_tokens", [](Sampling* sampling) { sampling->max_reasoning_tokens = 3; });
  refusal_of("top_k", [](Sampling* sampling) { sampling->temperature = 1, sampling->top_k = 1025; });
}

TEST_F(TensorRtLlm, RequestsThatTheEngineIsTooSmallForAreRefused) {
  const auto refusal_of = [&](const Question& asked) { return error_message([&] { whole(start(asked).get()); }); };
  EXPECT_NE(refusal_of(question(std::vector<int64_t>(501, 3), 1)).find("prompt tokens"), std::string::npos);
  EXPECT_NE(refusal_of(question({0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1, {1, 2, 3, 4, 5})).find("at most 8"),
            std::string::npos);
  EXPECT_NE(refusal_of(question({}, 1)).find("no tokens"), std::string::npos);
  Question asked = long_question();
  asked.sampling.max_new_tokens = 512;
  EXPECT_NE(error_message([&] { generator_->start({5}, {}, asked.sampling, {}); }).find("prompt and answer"),
            std::string::npos);
}

TEST_F(TensorRtLlm, AnAnswerIsCutToWhatIsLeftOfTheEnginesPositions) {
  Question asked = long_question();
  made_.config["build_config"]["max_seq_len"] = 20;
  made_.write();
  const Answer answer = whole(start(asked).get());
  EXPECT_EQ(answer.finish_reason, FinishReason::kContext);
  EXPECT_EQ(answer.token_ids.size(), 17u);
}

TEST_F(TensorRtLlm, AnEngineThatIsNotTheBundlesIsRefused) {
  const Json config = made_.config;
  made_.config["pretrained_config"]["rotary_base"] = 1e4;
  made_.write();
  EXPECT_NE(refusal().find("rotary_base"), std::string::npos);
  made_.config = config;
  made_.config["pretrained_config"]["quantization"]["quant_algo"] = "FP8";
  made_.write();
  EXPECT_NE(refusal().find("quant_algo"), std::string::npos);
  made_.config = config;
  made_.config["build_config"].erase("max_seq_len");
  made_.write();
  EXPECT_NE(refusal().find("max_seq_len"), std::string::npos);
  made_.config = config;
  made_.write();
  made_.write_engine("r1v_export.json", R"({"config.json": "0"})");
  EXPECT_NE(refusal().find("another checkpoint"), std::string::npos);
  std::filesystem::remove(made_.engine() / "r1v_export.json");
  EXPECT_EQ(refusal(), "no error");  // built by hand
  made_.write_engine("rank0.engine", "");
  EXPECT_NE(refusal().find("rank0.engine"), std::string::npos);
  std::filesystem::remove(made_.engine() / "config.json");
  EXPECT_NE(refusal().find("config.json"), std::string::npos);
  made_.bundle.pipeline.engines.clear();
  EXPECT_NE(refusal().find("no checkpoint"), std::string::npos);
}

TEST_F(TensorRtLlm, AnEngineThatTheLibraryRefusesIsRefusedWithItsFirstLine) {
  set([](Controls& all) { all.fail_open = "no CUDA-capable device is detected\n1 0x7f00"; });
  const std::string message = refusal();
  EXPECT_NE(message.find("found:    no CUDA-capable device is detected"), std::string::npos) << message;
  EXPECT_EQ(message.find("0x7f00"), std::string::npos);
}

TEST_F(TensorRtLlm, LibrariesOfOtherVersionsAreRefused) {
  const auto refusal_of = [](const std::string& version) {
    return error_message([&] { Library{libraries(version)}; });
  };
  EXPECT_EQ(refusal_of("1.2.0"), "no error");
  EXPECT_NE(refusal_of("1.3.0").find("later releases have no engines"), std::string::npos);
  EXPECT_NE(refusal_of("1.3.0").find("found:    1.3.0"), std::string::npos);
  EXPECT_NE(refusal_of("1.1.0").find("compiled for another version"), std::string::npos);
}

TEST_F(TensorRtLlm, AMissingLibraryIsRefusedAndAMissingModuleIsNotCompiledIn) {
  EXPECT_NE(error_message([&] { Library{"/nowhere/libtensorrt_llm.so"}; }).find("R1V_TENSORRT_LLM"), std::string::npos);
  EXPECT_NE(error_message([&] { Library{made_.engine().string()}; }).find("no TensorRT-LLM in this folder"),
            std::string::npos);
  ::setenv("R1V_TENSORRT_LLM_MODULE", "/nowhere/libr1v_tensorrt_llm.so", 1);
  EXPECT_FALSE(trtllm::is_compiled_in());
  const std::string message = error_message([&] { Library{libraries("1.2.0")}; });
  EXPECT_NE(message.find("compiled without TensorRT-LLM"), std::string::npos);
  EXPECT_NE(message.find("-DR1V_TENSORRT_LLM_INCLUDE"), std::string::npos);
}

}  // namespace
}  // namespace r1v
