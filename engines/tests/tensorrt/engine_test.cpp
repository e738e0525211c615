// The engine of TensorRT plans, on libraries that stand in for TensorRT and CUDA.
#include <gtest/gtest.h>

#include <cstdlib>

#include "backends/open_engine.h"
#include "backends/tensorrt/open.h"
#include "runner/batching/batching_loop.h"
#include "runner/generation.h"
#include "tests/error_message.h"
#include "tests/runner/batching/server.h"
#include "tests/tensorrt/plan_bundle.h"
#include "tests/tensorrt/stand_in/controls.h"

namespace r1v {
namespace {

using stand_in::controls;

constexpr char kStandIns[] = R1V_STAND_INS;

class TensorRt : public ::testing::Test {
 protected:
  void SetUp() override {
    controls() = {};
    ::setenv("R1V_CUDART", (std::string(kStandIns) + "/cuda").c_str(), 1);
    options_.device = "cuda";
    options_.tensorrt_library = std::string(kStandIns) + "/tensorrt-10";
  }

  void TearDown() override {
    engine_.reset();
    EXPECT_EQ(controls().allocations, 0);
    EXPECT_EQ(controls().misuse, "");
  }

  Engine& engine() {
    if (engine_ == nullptr) engine_ = open_engine(made_.bundle, options_);
    return *engine_;
  }

  // What opening the bundle says.
  std::string refusal() {
    return error_message([&] { open_engine(made_.bundle, options_); });
  }

  PlanBundle made_;
  EngineOptions options_;
  std::unique_ptr<Engine> engine_;
};

// Runs tokens of one row, whose embeddings are numbers; the logits after one of them, the last if there is none named.
std::vector<float> append(Decoder& decoder, const std::vector<float>& tokens, int64_t start, int64_t row = 0,
                          std::optional<int64_t> logits_index = std::nullopt) {
  std::vector<float> embeds, logits(40);
  std::vector<int64_t> positions;
  for (const float token : tokens) {
    embeds.insert(embeds.end(), {token, token});
    positions.push_back(start + static_cast<int64_t>(positions.size()));
  }
  const auto seq = static_cast<int64_t>(tokens.size());
  const int64_t length = start + seq, index = logits_index.value_or(seq - 1);
  decoder.step({1, seq, 1, embeds.data(), positions.data(), &start, &length, &index, row}, logits.data());
  return logits;
}

// What logits are to be after some tokens.
std::vector<float> expected(const std::vector<float>& tokens) {
  std::vector<float> logits(40);
  write_logits(tokens, static_cast<int64_t>(tokens.size()) - 1, 40, logits.data());
  return logits;
}

std::vector<float> counting(float from, int count) {
  std::vector<float> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(from + static_cast<float>(i));
  return tokens;
}

// Of a whole answer.
std::vector<int64_t> tokens_of(Generation* generation) {
  std::vector<int64_t> tokens;
  while (const std::optional<AnswerEvent> event = generation->next()) {
    if (event->token_id) tokens.push_back(*event->token_id);
  }
  return tokens;
}

TEST_F(TensorRt, SaysWhatItIs) {
  EXPECT_EQ(engine().name(), "tensorrt");
  EXPECT_EQ(engine().description(), "tensorrt 10.13.3.9, CUDA");
  const CacheLimits limits = engine().cache_limits();
  EXPECT_EQ(limits.slot_bytes, 2 * 2 * 2 * 2 * 2);
  EXPECT_EQ(limits.max_rows, 3);
  EXPECT_EQ(limits.capacity, 512);
  EXPECT_TRUE(limits.movable);
}

TEST_F(TensorRt, RowsThatDoNotBeginAtAnAlignedAddressComeOneAtATime) {
  const PlanBundle other(500);  // slots of 8 bytes
  EXPECT_EQ(open_engine(other.bundle, options_)->cache_limits().max_rows, 1);
}

TEST_F(TensorRt, MoreTilesThanAPlanTakesRunInSeveralCalls) {
  std::vector<float> pixels;
  for (const float tile : {1.0f, 2.0f, 3.0f, 4.0f, 5.0f}) pixels.insert(pixels.end(), 3 * 4 * 4, tile);
  const std::vector<float> features = engine().vision(pixels.data(), 5);
  const int runs = controls().runs;
  EXPECT_EQ(runs, 3);
  ASSERT_EQ(features.size(), 5u * 2 * 3);
  const std::vector<float> embeds = engine().projector(features, 5);
  ASSERT_EQ(embeds.size(), 5u * 2 * 2);
  for (size_t tile = 0; tile < 5; ++tile) {
    EXPECT_EQ(features[tile * 6 + 5], static_cast<float>(tile + 1));
    EXPECT_EQ(embeds[tile * 4 + 3], static_cast<float>(tile + 1));
  }
}

TEST_F(TensorRt, PromptsLongerThanAPlanTakesGoInPieces) {
  const auto decoder = engine().decoder(3, 512);
  const std::vector<float> tokens = counting(1, 37);  // in pieces of 16
  EXPECT_EQ(append(*decoder, tokens, 0, 1), expected(tokens));
  EXPECT_EQ(controls().runs, 3);
  // Logits after a token of the middle piece.
  EXPECT_EQ(append(*decoder, tokens, 0, 2, 20), expected(counting(1, 21)));
}

TEST_F(TensorRt, PromptsOfSeveralRowsAreOneRun) {
  const auto decoder = engine().decoder(3, 512);
  std::vector<float> embeds;
  for (int token = 0; token < 40; ++token) embeds.insert(embeds.end(), 2, static_cast<float>(token));
  std::vector<int64_t> positions;
  for (int token = 0; token < 40; ++token) positions.push_back(token % 20);
  const int64_t start[] = {0, 0}, length[] = {20, 20}, index[] = {4, 19};
  std::vector<float> logits(80);
  decoder->step({2, 20, 1, embeds.data(), positions.data(), start, length, index, 1}, logits.data());
  EXPECT_EQ(controls().runs, 2);
  EXPECT_EQ(std::vector<float>(logits.begin(), logits.begin() + 40), expected(counting(0, 5)));
  EXPECT_EQ(std::vector<float>(logits.begin() + 40, logits.end()), expected(counting(20, 20)));
}

TEST_F(TensorRt, SingleTokensAreCapturedOnceForEachNumberOfRowsAndReplayed) {
  const auto decoder = engine().decoder(2, 512);
  std::vector<float> tokens = counting(1, 5);
  append(*decoder, tokens, 0);
  for (int step = 0; step < 6; ++step) {
    tokens.push_back(static_cast<float>(30 - step));
    EXPECT_EQ(append(*decoder, {tokens.back()}, static_cast<int64_t>(tokens.size()) - 1), expected(tokens));
    if (step == 3) append(*decoder, counting(7, 9), 0, 1);  // the context is bound for another row meanwhile
  }
  EXPECT_EQ(controls().captures, 1);
  EXPECT_EQ(controls().launches, 5);
  // Both rows together are another graph.
  const float embeds[] = {3, 3, 4, 4};
  const int64_t start[] = {11, 9}, length[] = {12, 10}, index[] = {0, 0};
  std::vector<float> logits(80);
  for (int i = 0; i < 2; ++i) decoder->step({2, 1, 1, embeds, start, start, length, index}, logits.data());
  EXPECT_EQ(controls().captures, 2);
  std::vector<float> other = counting(7, 9);
  other.push_back(4);
  EXPECT_EQ(std::vector<float>(logits.begin() + 40, logits.end()), expected(other));
}

TEST_F(TensorRt, WhatCannotBeCapturedRunsAsBefore) {
  controls().capturable = false;
  const auto decoder = engine().decoder(1, 512);
  for (int step = 1; step < 5; ++step) {
    EXPECT_EQ(append(*decoder, {static_cast<float>(step)}, step - 1), expected(counting(1, step)));
  }
  EXPECT_EQ(controls().launches, 0);
  EXPECT_EQ(controls().runs, 4);
}

TEST_F(TensorRt, ACachesRowsMoveAndAreKeptWhenItGrows) {
  const auto decoder = engine().decoder(2, 512);
  const std::vector<float> tokens = counting(1, 5), others = counting(20, 7);
  append(*decoder, tokens, 0, 0);
  append(*decoder, {9}, 5, 0);  // so that a graph was captured
  append(*decoder, others, 0, 1);
  decoder->swap_rows(0, 1, 7);
  decoder->resize(3, 512, {7, 5});
  decoder->copy_row(1, 2, 5);
  EXPECT_EQ(decoder->batch(), 3);
  std::vector<float> next = tokens;
  next.push_back(6);
  for (const int64_t row : {1, 2}) EXPECT_EQ(append(*decoder, {6}, 5, row), expected(next));
  next = others;
  next.push_back(2);
  EXPECT_EQ(append(*decoder, {2}, 7, 0), expected(next));
  decoder->resize(1, 512, {8});
  EXPECT_EQ(append(*decoder, {2, 3}, 7, 0, 0), expected(next));
}

TEST_F(TensorRt, WrongStepsAndSizesAreErrors) {
  const auto decoder = engine().decoder(1, 512);
  EXPECT_THROW(append(*decoder, {1}, 0, 1), Error);
  EXPECT_THROW(append(*decoder, {1}, 0, -1), Error);
  EXPECT_NE(error_message([&] { engine().decoder(4, 512); }).find("at most 3 sequences of 512 tokens"),
            std::string::npos);
  EXPECT_THROW(engine().decoder(1, 513), Error);
  EXPECT_THROW(decoder->resize(4, 512, {0}), Error);
  const float embeds[] = {1, 1, 2, 2};
  const int64_t positions[] = {0, 1}, start = 0, length = 2, index[] = {0, 1};
  std::vector<float> logits(80);
  EXPECT_NE(error_message([&] {
              decoder->step({1, 2, 2, embeds, positions, &start, &length, index}, logits.data());
            }).find("logit_positions 1 to 1"),
            std::string::npos);
  EXPECT_NE(error_message([&] { append(*decoder, {1e6f}, 0); }).find("65504"), std::string::npos);
}

TEST_F(TensorRt, ErrorsOfTensorRtAndOfTheGpuSayWhatHappened) {
  const auto decoder = engine().decoder(1, 512);
  controls().running = false;
  EXPECT_NE(error_message([&] { append(*decoder, {1}, 0); }).find("the kernel fails"), std::string::npos);
  const std::vector<float> pixels(3 * 4 * 4);
  EXPECT_NE(error_message([&] { engine().vision(pixels.data(), 1); }).find("vision.plan"), std::string::npos);
  controls().running = true;
  EXPECT_EQ(append(*decoder, {1}, 0), expected({1}));
  controls().out_of_memory = true;
  try {
    engine().decoder(3, 512);
    ADD_FAILURE() << "there is no memory";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kMemory);
  }
}

TEST_F(TensorRt, LibrariesThatAreNotThereOrNotTheRightOnesAreNamed) {
  options_.tensorrt_library = std::string(kStandIns) + "/tensorrt-9";
  EXPECT_NE(refusal().find("compiled for another version"), std::string::npos);
  EXPECT_NE(refusal().find("9.13.3.9"), std::string::npos);
  options_.tensorrt_library = std::string(kStandIns) + "/cuda/libcudart.so";
  EXPECT_NE(refusal().find("This library is not TensorRT"), std::string::npos);
  options_.tensorrt_library = "/nowhere/libnvinfer.so.10";
  EXPECT_NE(refusal().find("TensorRT's library cannot be opened"), std::string::npos);
  EXPECT_NE(refusal().find("R1V_TENSORRT"), std::string::npos);
  options_.tensorrt_library = kStandIns;
  EXPECT_NE(refusal().find("There is no TensorRT in this folder"), std::string::npos);
  options_.tensorrt_library = std::string(kStandIns) + "/tensorrt-10";
  ::setenv("R1V_CUDART", kStandIns, 1);
  EXPECT_NE(refusal().find("There is no CUDA's runtime in this folder"), std::string::npos);
}

TEST_F(TensorRt, AMachineWithoutAGpuIsToldSo) {
  controls().gpus = 0;
  EXPECT_NE(refusal().find("no driver"), std::string::npos);
  controls().gpus = 1;
  options_.gpu = 1;
  EXPECT_NE(refusal().find("1 GPU"), std::string::npos);
  options_.device = "cpu";
  EXPECT_NE(refusal().find("device cuda"), std::string::npos);
}

TEST_F(TensorRt, PlansThatDoNotEncodeImagesHereAreNoErrorAndSayWhy) {
  const auto reason = [&](const std::string& target = "tensorrt") {
    std::string text;
    EXPECT_EQ(trt::open_vision(made_.bundle, target, options_, &text), nullptr);
    return text;
  };
  std::string none;
  EXPECT_NE(trt::open_vision(made_.bundle, "tensorrt", options_, &none), nullptr);
  EXPECT_EQ(none, "");
  EXPECT_NE(reason("tensorrt-rtx").find("-DR1V_TENSORRT_INCLUDE"), std::string::npos);
  options_.tensorrt_library = "/nowhere/libnvinfer.so.10";
  EXPECT_NE(reason().find("TensorRT's library cannot be opened"), std::string::npos);
  EXPECT_NE(reason().find("where:    /nowhere/libnvinfer.so.10"), std::string::npos) << reason();
  EXPECT_NE(reason().find("fix:      install TensorRT"), std::string::npos) << reason();
  options_.tensorrt_library = std::string(kStandIns) + "/tensorrt-10";
  controls().gpus = 0;
  EXPECT_NE(reason().find("no driver"), std::string::npos);
  controls().gpus = 1;
  options_.device = "cpu";
  EXPECT_NE(reason().find("--device cuda"), std::string::npos);
  options_.device = "cuda";
  const std::string path = "engines/tensorrt/vision.json";
  Json description = parse_json(made_.bundle.read(path, kTextLimitBytes), path);
  description["compute_capabilities"] = {120};
  made_.add(path, description.dump());
  EXPECT_NE(reason().find("A plan is for another GPU"), std::string::npos);
  description["plan_bytes"] = 7;  // A damaged plan is an error.
  made_.add(path, description.dump());
  EXPECT_NE(error_message([&] { reason(); }).find("7 bytes"), std::string::npos);
}

TEST_F(TensorRt, TheOtherLibrarysTargetIsRefusedWithWhatWouldTakeIt) {
  made_.bundle.pipeline.engines["tensorrt-rtx"] = made_.bundle.pipeline.engines["tensorrt"];
  options_.target = "tensorrt-rtx";
  EXPECT_NE(refusal().find("R1V_TENSORRT_INCLUDE"), std::string::npos);
}

TEST_F(TensorRt, PlansThatDoNotFitAreRefusedWithTheirCause) {
  const auto refused = [&](const std::string& graph, const char* field, const Json& value) {
    const std::string path = "engines/tensorrt/" + graph + ".json", sound = made_.bundle.read(path, kTextLimitBytes);
    Json description = parse_json(sound, path);
    description[Json::json_pointer(field)] = value;
    made_.add(path, description.dump());
    const std::string message = refusal();
    made_.add(path, sound);
    return message;
  };
  for (const auto& [graph, field, value, expected] :
       std::vector<std::tuple<const char*, const char*, Json, const char*>>{
           {"vision", "/version", "10.13.2.6", "tensorrt 10.13.2.6"},
           {"decoder", "/library", "tensorrt-rtx", "another version"},
           {"projector", "/compute_capabilities", {120}, "A plan is for another GPU"},
           {"decoder", "/stripped", true, "with their weights only"},
           {"decoder", "/plan_bytes", 7, "7 bytes"},
           {"decoder", "/bindings/0/dtype", "int4", "int4"},
           {"decoder", "/bindings/0/dtype", "float32", "not the one of its description"},
           {"decoder", "/bindings/0/shape/2", 9, "[-1, -1, 9]"},
           {"decoder", "/bindings/0/is_input", false, "an output"},
           {"decoder", "/bindings/5/shape/2", "batch", "[batch, 2, slots, 2]"},
           {"decoder", "/bindings/0/shape/1", "width", "a symbol that this version does not know"},
           {"decoder", "/profiles/0/seq", {1, 16, 32}, "profile 0"},
           {"decoder", "/profiles/0/seq", {4, 2, 1}, "profiles.seq"},
           {"decoder", "/profiles/1", Json::object(), "2 profiles"},
           {"decoder", "/bindings", Json::array(), "past_key_values.0.key"}}) {
    EXPECT_NE(refused(graph, field, value).find(expected), std::string::npos)
        << field << ": " << refused(graph, field, value);
  }
  const std::string sound(std::filesystem::file_size(made_.bundle.folder / "engines/tensorrt/decoder.plan"), 'x');
  made_.write("engines/tensorrt/decoder.plan", sound);
  EXPECT_NE(refusal().find("the plan's magic is wrong"), std::string::npos);
  made_.bundle.pipeline.engines.at("tensorrt").options["new_rule"] = true;
  EXPECT_NE(refusal().find("new_rule"), std::string::npos);
}

TEST_F(TensorRt, ACacheThatIsNotTheContractsIsRefused) {
  made_.bundle.contract.sizes.head_dim = 3;
  EXPECT_NE(refusal().find("[batch, 2, slots, 3]"), std::string::npos);
  made_.bundle.contract.sizes = {4, 2, 3, 2, 40, 3, 2, 2};
  EXPECT_NE(refusal().find("past_key_values.2.key"), std::string::npos);
}

TEST_F(TensorRt, EveryAnswerOfTheBatchingLoopIsTheLoneOne) {
  for (unsigned seed = 0; seed < 8; ++seed) {
    std::mt19937 random(seed);
    BatchingOptions options;
    options.max_rows = 1 + seed % 5;
    options.prefill_chunk = 1 + static_cast<int64_t>(random() % 40);
    options.cache_bytes = 512 * 32 * (1 + static_cast<int64_t>(random() % 4));
    ImageEncoder encoder(engine(), one_tile(), 1, random() % 2 == 0 ? 0 : 64);
    BatchingLoop loop(engine(), encoder, kMaxPositions, options);
    std::vector<Question> questions;
    std::vector<std::unique_ptr<Generation>> answers;
    for (int i = 0; i < 8; ++i) {
      questions.push_back(random_question(&random, false));
      answers.push_back(std::make_unique<Generation>(loop, job_of(questions.back())));
    }
    for (size_t i = 0; i < answers.size(); ++i) {
      ASSERT_EQ(tokens_of(answers[i].get()), plain_answer(questions[i])) << "seed " << seed << ", question " << i;
    }
    EXPECT_LE(loop.stats().rows, 3);
  }
  EXPECT_GT(controls().launches, controls().captures);
}

}  // namespace
}  // namespace r1v
