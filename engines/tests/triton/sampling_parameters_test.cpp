#include "triton/sampling_parameters.h"

#include <gtest/gtest.h>

#include "tests/error_message.h"

namespace r1v::triton {
namespace {

TEST(SamplingParameters, SayWhatDiffersFromTheCheckpoint) {
  Sampling checkpoint;
  checkpoint.temperature = 0.5;
  checkpoint.top_k = 40;
  const Sampling sampling = read_sampling(
      R"({"top_p": 1, "max_tokens": 7.0, "seed": 18446744073709551615, "stop": "x", "top_k": null, "min_p": 0.25,
          "presence_penalty": -1, "frequency_penalty": 0.5, "repetition_penalty": 1.5, "ignore_eos": true,
          "thinking_budget": 0, "logprobs": 2, "logit_bias": {"12": -100, "3": 1.5},
          "response_format": {"type": "text"}})",
      checkpoint);
  EXPECT_EQ(sampling.temperature, 0.5);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.max_new_tokens, 7);
  EXPECT_EQ(sampling.seed, UINT64_MAX);
  EXPECT_EQ(sampling.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(sampling.min_p, 0.25);
  EXPECT_EQ(sampling.presence_penalty, -1);
  EXPECT_EQ(sampling.frequency_penalty, 0.5);
  EXPECT_EQ(sampling.repetition_penalty, 1.5);
  EXPECT_TRUE(sampling.ignore_eos);
  EXPECT_EQ(sampling.max_reasoning_tokens, 0);
  EXPECT_EQ(sampling.logprobs, 2);
  const std::vector<std::pair<int64_t, double>> bias = {{12, -100}, {3, 1.5}};
  EXPECT_EQ(sampling.logit_bias, bias);
}

TEST(SamplingParameters, AreRefusedWithTheFieldThatIsWrong) {
  const std::pair<const char*, const char*> wrong[] = {
      {"7", "an object"},
      {"{", "not JSON"},
      {R"({"best_of": 3})", "best_of"},
      {R"({"temperature": "1"})", "temperature"},
      {R"({"temperature": 1e999})", "not JSON"},
      {R"({"max_tokens": 1.5})", "max_tokens"},
      {R"({"max_tokens": -1})", "max_tokens"},
      {R"({"max_tokens": 1e30})", "max_tokens"},
      {R"({"ignore_eos": 1})", "ignore_eos"},
      {R"({"stop": [1]})", "stop"},
      {R"({"stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]})", "stop"},
      {R"({"logit_bias": {"-1": 1}})", "logit_bias"},
      {R"({"logit_bias": {"1": "2"}})", "logit_bias"},
      {R"({"logit_bias": {"1234567890": 1}})", "logit_bias"},
      {R"({"response_format": {"type": "json_object"}})", "--backend python"},
      {R"({"guided_regex": "a"})", "--backend python"},
  };
  for (const auto& [parameters, cause] : wrong) {
    const std::string message = error_message([&, given = parameters] { read_sampling(given, {}); });
    EXPECT_NE(message.find(cause), std::string::npos) << parameters << "\n" << message;
  }
}

}  // namespace
}  // namespace r1v::triton
