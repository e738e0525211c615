#include "sampling/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/golden.h"

namespace r1v {
namespace {

Sampling sampling_of(const Json& json) {
  Sampling sampling;
  sampling.temperature = json.at("temperature");
  sampling.top_p = json.at("top_p");
  sampling.top_k = json.at("top_k");
  sampling.min_p = json.at("min_p");
  sampling.repetition_penalty = json.at("repetition_penalty");
  sampling.presence_penalty = json.at("presence_penalty");
  sampling.frequency_penalty = json.at("frequency_penalty");
  sampling.seed = json.at("seed").get<uint64_t>();
  for (const Json& bias : json.at("logit_bias")) sampling.logit_bias.emplace_back(bias[0], bias[1]);
  return sampling;
}

TEST(Sampler, TokensAreThoseOfPython) {
  GOLDEN_FOLDER(folder, "sampling");
  const Json golden = read_golden(folder / "golden.json");
  const std::string bytes = read_file(folder / "logits.f32", uint64_t{1} << 30);
  std::vector<float> logits(bytes.size() / sizeof(float));
  std::memcpy(logits.data(), bytes.data(), logits.size() * sizeof(float));
  const float* at = logits.data();
  size_t tokens = 0;
  for (const Json& expected : golden.at("cases")) {
    const size_t vocab = expected.at("vocab");
    Sampler sampler(sampling_of(expected), expected.at("prompt").get<std::vector<int64_t>>(), vocab);
    for (size_t step = 0; step < expected.at("tokens").size(); ++step, at += vocab) {
      ASSERT_EQ(sampler.next(at), expected.at("tokens")[step]) << "step " << step << ": " << expected.dump();
      ++tokens;
    }
  }
  EXPECT_GE(tokens, 5000u);
  EXPECT_EQ(at, logits.data() + logits.size());
}

TEST(Pcg64, NumbersAreThoseOfNumpy) {
  GOLDEN_FOLDER(folder, "sampling");
  const Json golden = read_golden(folder / "golden.json");
  EXPECT_GE(golden.at("random").size(), 50u);
  for (const Json& expected : golden.at("random")) {
    Pcg64 random(expected.at("seed").get<uint64_t>());
    for (const Json& number : expected.at("numbers")) ASSERT_EQ(random.random(), number.get<double>());
  }
}

TEST(Sampler, WithoutASeedTwoAnswersDiffer) {
  Sampling sampling;
  sampling.temperature = 1;
  sampling.seed = std::nullopt;
  const std::vector<float> flat(1 << 16, 0.0f);
  EXPECT_NE(Sampler(sampling, {}, flat.size()).next(flat.data()), Sampler(sampling, {}, flat.size()).next(flat.data()));
}

TEST(Sampler, LogitsThatAreNotFiniteAreRefused) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> bad = {
      {0, std::nanf(""), 1}, {std::nanf(""), 2, 1}, {1, kInfinity, 0}, {-kInfinity, -kInfinity, -kInfinity}};
  for (const std::vector<float>& logits : bad) {
    EXPECT_THROW(Sampler({}, {}, 3).next(logits.data()), Error);
  }
  const float fine[] = {-kInfinity, 1, 0};
  EXPECT_EQ(Sampler({}, {}, 3).next(fine), 1);
}

TEST(Sampler, SettingsOutOfTheirRangeAreNamed) {
  const std::pair<const char*, void (*)(Sampling&)> wrong[] = {
      {"max_new_tokens", [](Sampling& s) { s.max_new_tokens = 0; }},
      {"temperature", [](Sampling& s) { s.temperature = -1; }},
      {"temperature", [](Sampling& s) { s.temperature = std::nan(""); }},
      {"top_p", [](Sampling& s) { s.top_p = 0; }},
      {"top_k", [](Sampling& s) { s.top_k = -1; }},
      {"min_p", [](Sampling& s) { s.min_p = 1.5; }},
      {"repetition_penalty", [](Sampling& s) { s.repetition_penalty = 0; }},
      {"presence_penalty", [](Sampling& s) { s.presence_penalty = 3; }},
      {"frequency_penalty", [](Sampling& s) { s.frequency_penalty = -3; }},
      {"logit_bias",
       [](Sampling& s) {
         s.logit_bias = {{7, 1.0}};
       }},
      {"logit_bias",
       [](Sampling& s) {
         s.logit_bias = {{0, 101.0}};
       }},
      {"logit_bias",
       [](Sampling& s) {
         s.logit_bias = {{0, 1.0}, {0, 2.0}};
       }},
      {"stop", [](Sampling& s) { s.stop = {""}; }},
      {"stop", [](Sampling& s) { s.stop = {"\xff"}; }},
  };
  for (const auto& [name, spoil] : wrong) {
    Sampling sampling;
    spoil(sampling);
    try {
      Sampler(sampling, {}, 7);
      ADD_FAILURE() << name << " is taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kUsage);
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  }
}

TEST(Sampler, APromptBeyondTheVocabularyIsRefused) {
  EXPECT_THROW(Sampler({}, {7}, 7), Error);
  EXPECT_THROW(Sampler({}, {-1}, 7), Error);
}

TEST(Sampling, IsReadFromPipelineJson) {
  const Json json = {
      {"temperature", 0.6}, {"top_p", 0.95}, {"top_k", 50}, {"repetition_penalty", 1.05}, {"max_new_tokens", 9}};
  const Sampling sampling = sampling_from_json(json, "pipeline.json: default_sampling");
  EXPECT_EQ(std::tie(sampling.temperature, sampling.top_p, sampling.top_k), std::make_tuple(0.6, 0.95, 50));
  EXPECT_EQ(std::tie(sampling.repetition_penalty, sampling.max_new_tokens), std::make_tuple(1.05, 9));
  const std::pair<const char*, Json> wrong[] = {{"temperature", -1},      {"top_p", 0},  {"top_p", "x"},
                                                {"top_k", 1.5},           {"top_k", -1}, {"max_new_tokens", 0},
                                                {"repetition_penalty", 0}};
  for (const auto& [name, value] : wrong) {
    Json spoiled = json;
    spoiled[name] = value;
    try {
      sampling_from_json(spoiled, "pipeline.json: default_sampling");
      ADD_FAILURE() << name << " is taken";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace r1v
