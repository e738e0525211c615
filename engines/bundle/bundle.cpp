#include "bundle/bundle.h"

#include "base/files.h"
#include "bundle/contract.h"

namespace r1v {
namespace {

void require_equal(int64_t in_pipeline, int64_t in_contract, const std::string& name) {
  if (in_pipeline == in_contract) return;
  throw Error(Code::kBundle, "The documents of the bundle contradict each other.",
              {std::string(contract::kPipelineFile) + ": " + name, std::to_string(in_contract),
               std::to_string(in_pipeline), "run r1v-export verify on the bundle, or build it again"});
}

}  // namespace

Bundle open_bundle(const std::filesystem::path& folder, bool verify) {
  Manifest manifest = read_manifest(folder);
  if (verify) verify_bundle(folder, manifest);
  const auto document = [&](const char* name) {
    return parse_json(read_verified(folder, manifest, name, kTextLimitBytes), (folder / name).string());
  };
  Contract contract = parse_contract(document(contract::kContractFile), contract::kContractFile);
  Pipeline pipeline = parse_pipeline(document(contract::kPipelineFile), contract::kPipelineFile);
  require_equal(pipeline.tokens_per_tile, contract.sizes.tokens_per_tile, "tokens_per_tile");
  require_equal(Fields(pipeline.document, contract::kPipelineFile).object("tiling").integer("tile_size", 1, INT32_MAX),
                contract.sizes.tile_size, "tile_size");
  return {folder, std::move(manifest), std::move(contract), std::move(pipeline)};
}

}  // namespace r1v
