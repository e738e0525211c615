// The whole way from images and a question to an answer:
// tiles -> vision -> projector -> embed -> prefill -> decode -> reasoning and text
// Where a library decodes, it takes the place of embed, prefill and decode.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/open_engine.h"
#include "bundle/bundle.h"
#include "image/load_image.h"
#include "runner/generation.h"
#include "runner/image_encoder.h"
#include "sampling/sampling.h"
#include "text/prompt.h"

namespace r1v {

// A conversation to be answered.
struct Request {
  std::vector<Turn> turns;     // the last is the user's
  std::vector<Pixels> images;  // the images of all turns, in order
  bool think = true;           // let the model think before it answers, if its template knows how
  bool raw = false;            // continue the text of the only turn, without a template around it
  bool grounding = false;      // names of grounding tokens in messages are those tokens, and answers show them
};

struct RunnerOptions {
  EngineOptions engine;
  BatchingOptions batching;
  bool verify = false;  // first compare every file with the manifest
};

// Answers questions with the engine of a bundle, or with a library that decodes. Any number of threads may use it at a
// time.
class Runner {
 public:
  // Throws kBundle, kCapability, kUsage.
  Runner(const std::filesystem::path& bundle, const RunnerOptions& options);

  const Bundle& bundle() const { return bundle_; }
  // Of what answers, in words.
  std::string description() const;
  // What people should know of how images are encoded, in a line; empty if nothing.
  std::string note() const { return vision().note(); }
  // Tokens of a prompt and its answer, at most.
  int64_t max_positions() const;
  ImagePolicy image_policy() const { return image_policy_; }
  const ImageLimits& image_limits() const { return encoder_->tiling().limits; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const PromptDocument& prompt_document() const { return prompt_; }
  const ReasoningTags& reasoning_tags() const { return tags_; }

  // How tokens are chosen where the caller does not say. Throws kBundle: generation_config.json has none that can be
  // used, and the caller has to say it.
  Sampling default_sampling() const;

  // Begins to answer a request, with all others. Throws kInput: the request cannot be used; kUsage: the sampling
  // cannot; kQueueFull: as many requests wait as may.
  std::unique_ptr<Generation> start(Request request, const Sampling& sampling, JobOptions options = {});

  BatchingStats stats() const { return loop_->stats(); }

 private:
  std::vector<int64_t> encode(const Request& request) const;
  AnswerStream stream(const Request& request, const Sampling& sampling) const;
  VisionEngine& vision() const;

  const Bundle bundle_;
  std::unique_ptr<Engine> engine_;  // null where a library decodes:
  Deployment deployment_;           // this one
  std::unique_ptr<const Tokenizer> tokenizer_;
  PromptDocument prompt_;
  ReasoningTags tags_;
  std::vector<int64_t> stop_ids_;
  std::vector<int64_t> end_tag_;  // tokens that end reasoning
  ImagePolicy image_policy_;
  std::unique_ptr<ImageEncoder> encoder_;
  std::unique_ptr<BatchingLoop> loop_;  // last: its threads use the others
};

}  // namespace r1v
