#include "runner/runner.h"

#include <algorithm>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "base/files.h"
#include "bundle/contract.h"

namespace r1v {
namespace {

std::string field(const char* name) { return std::string(contract::kPipelineFile) + ": " + name; }

Json tokenizer_definition(const Bundle& bundle) {
  const std::string& path = bundle.pipeline.tokenizer_definition;
  return parse_json(bundle.read(path, kTextLimitBytes), (bundle.folder / path).string());
}

// The tokens of a tag: one of its own, or as many as its text takes.
std::vector<int64_t> tag_ids(const Tokenizer& tokenizer, const TokenizerDocument& document, const std::string& tag) {
  for (const AddedToken& added : document.added_tokens) {
    if (added.token == tag) return {added.id};
  }
  return tokenizer.encode_text(tag);
}

// Gives freed memory back to the system: reading the definition of 152,000 tokens leaves 50 MB, which stays otherwise.
void return_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

std::vector<int64_t> ids_of(const std::vector<TokenPiece>& tokens) {
  std::vector<int64_t> ids;
  for (const TokenPiece& token : tokens) ids.push_back(token.id);
  return ids;
}

}  // namespace

Runner::Runner(const std::filesystem::path& bundle, const RunnerOptions& options)
    : bundle_(open_bundle(bundle, options.verify)) {
  const Fields pipeline(bundle_.pipeline.document, contract::kPipelineFile);
  const TokenizerDocument document = tokenizer_from_json(pipeline.at("tokenizer"), field("tokenizer"));
  tokenizer_ = std::make_unique<const Tokenizer>(tokenizer_definition(bundle_), document);
  return_freed_memory();
  prompt_ = prompt_from_json(pipeline.at("prompt"), field("prompt"));
  tags_ = reasoning_from_json(pipeline.at("reasoning"), field("reasoning"));
  end_tag_ = tag_ids(*tokenizer_, document, tags_.end);
  stop_ids_ = stop_ids_from_json(pipeline.at("stop_tokens"), field("stop_tokens"));
  image_policy_ = parse_image_policy(pipeline);
  if (options.engine.engine.empty()) {
    engine_ = open_engine(bundle_, options.engine);
  } else {
    EngineOptions engine = options.engine;
    engine.reuse_prefixes = options.batching.keep_prefixes;
    deployment_ = open_deployment(bundle_, engine);
  }
  encoder_ = std::make_unique<ImageEncoder>(vision(), Tiling::from_json(pipeline.object("tiling")),
                                            options.engine.threads, options.batching.image_cache_bytes);
  loop_ = engine_ != nullptr
              ? std::make_unique<BatchingLoop>(*engine_, *encoder_, max_positions(), options.batching)
              : std::make_unique<BatchingLoop>(*deployment_.generator, *encoder_, max_positions(), options.batching);
}

VisionEngine& Runner::vision() const { return engine_ != nullptr ? *engine_ : *deployment_.vision; }

std::string Runner::description() const {
  if (engine_ != nullptr) return engine_->description();
  return deployment_.generator->description() + "; images: " + deployment_.vision->description();
}

int64_t Runner::max_positions() const {
  const int64_t positions = bundle_.pipeline.max_positions;
  return engine_ != nullptr ? positions : std::min(positions, deployment_.generator->max_tokens());
}

Sampling Runner::default_sampling() const {
  const Json& sampling = bundle_.pipeline.document.at("default_sampling");
  if (!sampling.is_null()) return sampling_from_json(sampling, field("default_sampling"));
  throw Error(Code::kBundle, "The checkpoint's generation_config.json has a value out of its range.",
              {field("default_sampling"), "", "", "say how tokens are to be chosen"});
}

std::unique_ptr<Generation> Runner::start(Request request, const Sampling& sampling, JobOptions options) {
  sampling.validate();
  Prompt prompt{};
  {
    const Measure measure(&prompt.timings.preprocess_ms);
    prompt.token_ids = encode(request);
  }
  prompt.image_token_id = prompt_.images.context.id;
  AnswerStream answer = stream(request, sampling);
  prompt.images = std::move(request.images);
  auto job = std::make_shared<Job>(std::move(prompt), sampling, std::move(answer), std::move(options));
  return std::make_unique<Generation>(*loop_, std::move(job));
}

std::vector<int64_t> Runner::encode(const Request& request) const {
  const int64_t max_positions = this->max_positions();
  if (request.raw) {
    if (request.turns.size() == 1 && request.images.empty()) {
      return encode_raw(*tokenizer_, request.turns[0].text, max_positions);
    }
    throw Error(Code::kInput, "A text that is continued is one turn without images.", {"request", "", "", ""});
  }
  std::vector<int64_t> tiles;
  for (const Pixels& image : request.images) {
    tiles.push_back(static_cast<int64_t>(tile_count(image.width(), image.height(), encoder_->tiling())));
  }
  return encode_prompt(*tokenizer_, prompt_, request.turns, tiles, max_positions, {request.think, request.grounding});
}

AnswerStream Runner::stream(const Request& request, const Sampling& sampling) const {
  const std::optional<bool> thinking =
      request.raw ? std::nullopt : std::optional(request.think && !prompt_.thinking.empty());
  Detokenizer detokenizer(*tokenizer_, request.grounding ? ids_of(prompt_.grounding_tokens) : std::vector<int64_t>{});
  return AnswerStream(AnswerText(std::move(detokenizer), {sampling.stop, sampling.stop_in_reasoning}, thinking, tags_),
                      sampling.ignore_eos ? std::vector<int64_t>{} : stop_ids_, sampling.max_new_tokens,
                      {sampling.max_reasoning_tokens, end_tag_});
}

}  // namespace r1v
