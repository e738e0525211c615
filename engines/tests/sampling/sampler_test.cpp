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
  sampling.logprobs = json.at("top_count").get<int64_t>();
  for (const Json& bias : json.at("logit_bias")) sampling.logit_bias.emplace_back(bias[0], bias[1]);
  return sampling;
}

void expect_logprobs(const TokenLogprobs& found, const Json& expected) {
  std::vector<std::pair<int64_t, double>> all = found.top;
  all.emplace_back(-1, found.logprob);
  ASSERT_EQ(all.size(), expected.size());
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(all[i].first, expected[i][0]);
    if (expected[i][1].is_null()) {
      ASSERT_EQ(all[i].second, -std::numeric_limits<double>::infinity());
    } else {
      // numpy's exponential differs by a unit in the last place on some CPUs.
      const double value = expected[i][1];
      ASSERT_NEAR(all[i].second, value, 1e-13 * std::max(1.0, std::abs(value)));
    }
  }
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
      const int64_t token = sampler.next(at);
      ASSERT_EQ(token, expected.at("tokens")[step]) << "step " << step << ": " << expected.dump();
      const std::optional<TokenLogprobs> logprobs = sampler.logprobs(at, token);
      ASSERT_TRUE(logprobs);
      expect_logprobs(*logprobs, expected.at("logprobs")[step]);
      ASSERT_FALSE(testing::Test::HasFailure()) << "step " << step << ": " << expected.dump();
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
      {"max_reasoning_tokens", [](Sampling& s) { s.max_reasoning_tokens = -2; }},
      {"logprobs", [](Sampling& s) { s.logprobs = 21; }},
      {"logprobs", [](Sampling& s) { s.logprobs = -2; }},
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

TEST(Sampler, AForcedTokenComesWhateverTheLogitsSay) {
  Sampling sampling;
  sampling.temperature = 1;
  Sampler forced(sampling, {}, 3), free(sampling, {}, 3);
  const float logits[] = {0, 50, 0};
  EXPECT_EQ(forced.next(logits, 2), 2);
  const float flat[] = {0, 0, 0};
  EXPECT_EQ(forced.next(flat), free.next(flat));  // Nothing was drawn for it.
  EXPECT_THROW(forced.next(logits, 3), Error);
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
