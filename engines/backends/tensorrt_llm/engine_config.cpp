#include "backends/tensorrt_llm/engine_config.h"

#include <system_error>

#include "base/files.h"

namespace r1v::trtllm {
namespace {

namespace fs = std::filesystem;

constexpr char kConfig[] = "config.json", kOrigin[] = "r1v_export.json", kCheckpoint[] = "checkpoint";
constexpr int64_t kMost = INT32_MAX;

// Fields that decide what is computed.
constexpr const char* kModelFields[] = {"architecture", "dtype", "vocab_size", "hidden_size", "rotary_base"};
constexpr const char* kMappingFields[] = {"tp_size", "pp_size"};
constexpr const char* kQuantizationFields[] = {"quant_algo", "kv_cache_quant_algo"};

// The checkpoint's folder inside the bundle.
std::string checkpoint_folder(const Bundle& bundle) {
  const auto engine = bundle.pipeline.engines.find(kTarget);
  if (engine == bundle.pipeline.engines.end()) {
    throw Error(Code::kBundle, "The bundle has no checkpoint of TensorRT-LLM.",
                {bundle.folder.string(), kTarget, "", std::string("build it with --target ") + kTarget});
  }
  const auto folder = engine->second.files.find(kCheckpoint);
  if (folder == engine->second.files.end()) throw_field("pipeline.json: engines.tensorrt-llm.files", kCheckpoint, {});
  return std::string("engines/") + kTarget + "/" + folder->second;
}

void require_equal(const Fields& expected, const Fields& found, const char* name) {
  if (expected.at(name) == found.at(name)) return;
  throw Error(Code::kBundle, "The engine does not match the bundle's checkpoint.",
              {found.where() + "." + name, expected.at(name).dump(), found.at(name).dump(),
               "build an engine from this bundle: r1v-export engine"});
}

void require_same_model(const Fields& checkpoint, const Fields& model) {
  for (const char* name : kModelFields) require_equal(checkpoint, model, name);
  for (const char* name : kMappingFields) require_equal(checkpoint.object("mapping"), model.object("mapping"), name);
  for (const char* name : kQuantizationFields)
    require_equal(checkpoint.object("quantization"), model.object("quantization"), name);
}

void require_rank_files(const fs::path& engine, int64_t ranks) {
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const fs::path file = engine / ("rank" + std::to_string(rank) + ".engine");
    std::error_code error;
    if (fs::is_regular_file(file, error) && fs::file_size(file, error) > 0) continue;
    throw Error(Code::kBundle, "A file of the engine is missing or empty.",
                {file.string(), "", "", "build it again into an empty folder: r1v-export engine"});
  }
}

// An engine that was built by hand does not record its weights: then only its formats are compared.
void require_same_weights(const Bundle& bundle, const std::string& checkpoint, const fs::path& engine) {
  const fs::path path = engine / kOrigin;
  std::error_code error;
  if (!fs::exists(path, error)) return;
  Json expected = Json::object();
  for (const auto& [file, entry] : bundle.manifest.files) {
    if (file.rfind(checkpoint + "/", 0) == 0) expected[file] = entry.sha256;
  }
  if (parse_json(read_file(path), path.string()) == expected) return;
  throw Error(
      Code::kBundle, "The engine was built from another checkpoint.",
      {engine.string(), "the checkpoint in the bundle", "", "build an engine from this bundle: r1v-export engine"});
}

bool is(const Json& value, const char* text) { return value.is_string() && value == text; }

// Whether attention over the prompt reads the paged cache (r1v_export/targets/tensorrt_llm/build/command.py).
bool reuses_blocks(const Fields& checkpoint) {
  const Fields quantization = checkpoint.object("quantization");
  const Json& cache = quantization.at("kv_cache_quant_algo");
  const bool cached_as_computed = cache.is_null() || (is(cache, "FP8") && is(quantization.at("quant_algo"), "FP8"));
  return checkpoint.text("dtype") != "float32" && cached_as_computed;
}

}  // namespace

EngineConfig read_engine_config(const Bundle& bundle, const fs::path& engine) {
  const std::string folder = checkpoint_folder(bundle), of_checkpoint = folder + "/" + kConfig;
  const Json checkpoint_json = parse_json(bundle.read(of_checkpoint, kTextLimitBytes), of_checkpoint);
  const fs::path of_engine = engine / kConfig;
  const Json engine_json = parse_json(read_file(of_engine), of_engine.string());
  const Fields checkpoint(checkpoint_json, of_checkpoint), config(engine_json, of_engine.string());
  const Fields build = config.object("build_config");
  require_same_model(checkpoint, config.object("pretrained_config"));
  const Fields mapping = checkpoint.object("mapping");
  EngineConfig read{};
  read.dtype = element_type(checkpoint.text("dtype"), of_checkpoint + ": dtype");
  read.vocab = checkpoint.integer("vocab_size", 1, kMost);
  read.hidden = checkpoint.integer("hidden_size", 1, kMost);
  read.ranks = mapping.integer("world_size", 1, 4096);
  read.reuses_blocks = reuses_blocks(checkpoint);
  read.max_batch_size = build.integer("max_batch_size", 1, kMost);
  read.max_input_len = build.integer("max_input_len", 1, kMost);
  read.max_seq_len = build.integer("max_seq_len", 1, kMost);
  read.max_num_tokens = build.integer("max_num_tokens", 1, kMost);
  read.max_table_rows = build.integer("max_prompt_embedding_table_size", 0, kMost);
  if (read.hidden != bundle.contract.sizes.hidden) {
    throw_field(of_checkpoint + ": hidden_size", std::to_string(bundle.contract.sizes.hidden), read.hidden);
  }
  require_rank_files(engine, read.ranks);
  require_same_weights(bundle, folder, engine);
  return read;
}

}  // namespace r1v::trtllm
