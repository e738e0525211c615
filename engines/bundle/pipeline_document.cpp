#include "bundle/pipeline_document.h"

#include <algorithm>

#include "base/files.h"
#include "bundle/contract.h"
#include "bundle/schema_version.h"

namespace r1v {
namespace {

constexpr int64_t kMostTokens = 1 << 24;

std::optional<DefaultSampling> parse_sampling(const Json& value, const std::string& where) {
  if (value.is_null()) return std::nullopt;
  const Fields fields(value, where);
  return DefaultSampling{fields.number("temperature"), fields.number("top_p"), fields.integer("top_k", 0, INT64_MAX),
                         fields.number("repetition_penalty"), fields.integer("max_new_tokens", 1, INT64_MAX)};
}

std::string inside(const Json& path, const std::string& field) {
  if (!path.is_string() || !is_inside(path.get<std::string>())) {
    throw_field(field, "a plain relative path inside the folder", path);
  }
  return path.get<std::string>();
}

std::map<std::string, EngineDocument> parse_engines(const Fields& engines) {
  std::map<std::string, EngineDocument> parsed;
  for (const auto& [target, content] : engines.all().items()) {
    const Fields fields(content, engines.where() + "." + target);
    EngineDocument engine{{}, fields.object("options").all()};
    const Fields files = fields.object("files");
    for (const auto& [name, path] : files.all().items()) {
      // A target may be the folder itself.
      engine.files[name] = path == "." ? "." : inside(path, files.where() + "." + name);
    }
    if (!is_inside(target) || target.find('/') != std::string::npos)
      throw_field(fields.where(), "a target's name", target);
    parsed[target] = std::move(engine);
  }
  return parsed;
}

std::vector<int64_t> parse_stop_ids(const Fields& document) {
  std::vector<int64_t> ids;
  for (const Json& each : document.array("stop_tokens")) {
    ids.push_back(Fields(each, document.where() + ".stop_tokens").integer("id", 0, kMostTokens));
  }
  return ids;
}

}  // namespace

Pipeline parse_pipeline(Json document, const std::string& where) {
  const Fields fields(document, where);
  require_schema_version(fields, contract::kPipelineSchemaVersion);
  const Fields prompt = fields.object("prompt"), images = prompt.object("images"), tags = fields.object("reasoning");
  Pipeline pipeline{};
  pipeline.tokenizer_definition = inside(fields.object("tokenizer").at("definition"), where + ".tokenizer.definition");
  pipeline.stop_ids = parse_stop_ids(fields);
  pipeline.reasoning_tags = {tags.text("start"), tags.text("end")};
  pipeline.tokens_per_tile = images.integer("tokens_per_tile", 1, kMostTokens);
  pipeline.image_token_id = images.object("context").integer("id", 0, kMostTokens);
  pipeline.max_positions = fields.object("positions").integer("max_positions", 1, kMostTokens);
  pipeline.thinks = !prompt.array("thinking").empty();
  pipeline.image_policy = fields.text("image_policy");
  pipeline.default_sampling = parse_sampling(fields.at("default_sampling"), where + ".default_sampling");
  pipeline.engines = parse_engines(fields.object("engines"));
  pipeline.document = std::move(document);
  return pipeline;
}

}  // namespace r1v
