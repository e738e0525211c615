#include "bundle/pipeline_document.h"

#include "base/files.h"
#include "bundle/contract.h"
#include "bundle/schema_version.h"

namespace r1v {
namespace {

constexpr int64_t kMostTokens = 1 << 24;

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

}  // namespace

Pipeline parse_pipeline(Json document, const std::string& where) {
  const Fields fields(document, where);
  require_schema_version(fields, contract::kPipelineSchemaVersion);
  const Fields images = fields.object("prompt").object("images");
  Pipeline pipeline{};
  pipeline.tokenizer_definition = inside(fields.object("tokenizer").at("definition"), where + ".tokenizer.definition");
  pipeline.tokens_per_tile = images.integer("tokens_per_tile", 1, kMostTokens);
  pipeline.image_token_id = images.object("context").integer("id", 0, kMostTokens);
  pipeline.max_positions = fields.object("positions").integer("max_positions", 1, kMostTokens);
  pipeline.engines = parse_engines(fields.object("engines"));
  pipeline.document = std::move(document);
  return pipeline;
}

}  // namespace r1v
