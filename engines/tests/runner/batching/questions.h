// Questions to the fake engine, and their answers worked out the plain way: no cache, no batch.
#pragma once

#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "runner/batching/engine_batch.h"
#include "sampling/sampler.h"
#include "tests/runner/fake_engine.h"
#include "tests/text/byte_tokenizer.h"

namespace r1v {

inline constexpr int64_t kMaxPositions = 512;
inline constexpr int64_t kStopId = 39;

struct Question {
  std::vector<int64_t> ids;     // 0 is an image token; an image has two
  std::vector<uint8_t> images;  // each one's color
  Sampling sampling;
};

inline Question question(std::vector<int64_t> ids, int64_t max_new_tokens, std::vector<uint8_t> images = {}) {
  Question question{std::move(ids), std::move(images), {}};
  question.sampling.max_new_tokens = max_new_tokens;
  return question;
}

// Questions many of which begin alike, some with images, some answered at random by their seed.
// `growing`: short ones with long answers, which outgrow what their rows began with.
inline Question random_question(std::mt19937* random, bool growing) {
  const auto below = [random](int64_t limit) {
    return static_cast<int64_t>((*random)() % static_cast<uint64_t>(limit));
  };
  Question question;
  const int64_t shared[] = {0, 0, 20, 40, 120};
  for (int64_t i = 0, count = shared[below(growing ? 3 : 5)]; i < count; ++i) question.ids.push_back(1 + i % 7);
  for (int64_t image = below(3); image > 0; --image) {
    question.images.push_back(static_cast<uint8_t>(60 * below(4)));
    question.ids.insert(question.ids.end(), {5, 0, 0, 6});
  }
  for (int64_t own = 1 + below(growing ? 10 : 70); own > 0; --own) question.ids.push_back(1 + below(37));
  question.sampling.max_new_tokens = growing ? 100 + below(120) : 1 + below(90);
  if (growing || below(3) == 0) question.sampling.logit_bias = {{kStopId, -100}};
  if (below(2) == 0) {
    question.sampling.temperature = 1.3;
    question.sampling.seed = static_cast<uint64_t>(below(5));
  }
  return question;
}

// What the encoder makes of an image of one color and tile.
inline float embedding_of(uint8_t color) { return static_cast<float>(color) / 255; }

inline std::vector<int64_t> plain_answer(const Question& question) {
  const int64_t vocab = FakeEngine().sizes().vocab;
  std::vector<float> held, logits(static_cast<size_t>(vocab));
  size_t image_tokens = 0;
  for (const int64_t id : question.ids) {
    held.push_back(id == 0 ? embedding_of(question.images[image_tokens++ / 2]) : static_cast<float>(id));
  }
  Sampler sampler(question.sampling, question.ids, logits.size());
  std::vector<int64_t> answer;
  while (static_cast<int64_t>(answer.size()) < question.sampling.max_new_tokens) {
    write_logits(held, static_cast<int64_t>(held.size()) - 1, vocab, logits.data());
    answer.push_back(sampler.next(logits.data()));
    if (answer.back() == kStopId) break;
    held.push_back(static_cast<float>(answer.back()));
  }
  return answer;
}

inline AnswerStream stream_of(const Question& question) {
  static const Tokenizer tokenizer = byte_tokenizer();
  AnswerText text(Detokenizer(tokenizer), {}, std::nullopt, {"<think>", "</think>"});
  return AnswerStream(std::move(text), {kStopId}, question.sampling.max_new_tokens);
}

}  // namespace r1v
