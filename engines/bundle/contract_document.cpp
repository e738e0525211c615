#include "bundle/contract_document.h"

#include <algorithm>

#include "bundle/contract.h"
#include "bundle/schema_version.h"

namespace r1v {
namespace {

constexpr int64_t kMostOfASize = 1 << 20, kMostTileSize = 1 << 14;
constexpr int64_t kMostCacheNumbers = int64_t{1} << 32;  // of one token, keys and values each

Sizes parse_sizes(const Fields& fields) {
  const auto size = [&](const char* name) { return fields.integer(name, 1, kMostOfASize); };
  const Sizes sizes = {fields.integer("tile_size", 1, kMostTileSize),
                       size("tokens_per_tile"),
                       size("vision_features"),
                       size("hidden"),
                       size("vocab"),
                       size("layers"),
                       size("kv_heads"),
                       size("head_dim")};
  if (sizes.layers * sizes.kv_heads * sizes.head_dim > kMostCacheNumbers) {
    throw_field(fields.where() + ": layers, kv_heads, head_dim", "a cache that fits into memory", fields.all());
  }
  return sizes;
}

std::vector<TensorContract> parse_tensors(const Json& list, const std::string& where) {
  std::vector<TensorContract> tensors;
  for (const Json& each : list) {
    const Fields fields(each, where + "[" + std::to_string(tensors.size()) + "]");
    tensors.push_back({fields.text("name"), element_type(fields.text("dtype"), fields.where() + ".dtype")});
  }
  return tensors;
}

using Names = std::vector<std::string>;

// What the inputs and outputs of the four graphs must be called, in order.
std::vector<std::pair<Names, Names>> expected_names(const Sizes& sizes) {
  using namespace contract;
  Names inputs = {kInputsEmbeds, kPositionIds, kCacheWriteIndex, kCacheLength, kLogitsIndex}, outputs = {kLogits};
  for (const auto& [past, present] : cache_pairs(sizes.layers)) {
    inputs.push_back(past);
    outputs.push_back(present);
  }
  return {{{kPixelValues}, {kVisionFeatures}},
          {{kVisionFeatures}, {kImageEmbeds}},
          {{kInputIds, kImageEmbeds}, {kInputsEmbeds}},
          {inputs, outputs}};
}

void require_names(const std::vector<TensorContract>& tensors, const Names& expected, const std::string& where) {
  for (size_t i = 0; i < std::max(tensors.size(), expected.size()); ++i) {
    const std::string found = i < tensors.size() ? tensors[i].name : "nothing";
    const std::string wanted = i < expected.size() ? expected[i] : "nothing";
    if (found != wanted) {
      throw Error(Code::kBundle, "The contract has tensors that this version does not know.",
                  {where + "[" + std::to_string(i) + "]", wanted, found, "use a libr1v of the bundle's version"});
    }
  }
}

std::vector<GraphContract> parse_graphs(const Fields& document, const Sizes& sizes) {
  using namespace contract;
  const Names names = {kVision, kProjector, kEmbed, kDecoder};
  const auto expected = expected_names(sizes);
  std::vector<GraphContract> graphs;
  for (const Json& each : document.array("graphs")) {
    const size_t index = graphs.size();
    const Fields fields(each, document.where() + ": graphs[" + std::to_string(index) + "]");
    GraphContract graph{fields.text("name"), parse_tensors(fields.array("inputs"), fields.where() + ".inputs"),
                        parse_tensors(fields.array("outputs"), fields.where() + ".outputs")};
    if (index >= names.size() || graph.name != names[index])
      throw_field(fields.where() + ".name", "the four graphs", each);
    require_names(graph.inputs, expected[index].first, fields.where() + ".inputs");
    require_names(graph.outputs, expected[index].second, fields.where() + ".outputs");
    graphs.push_back(std::move(graph));
  }
  if (graphs.size() != names.size()) throw_field(document.where() + ": graphs", "four graphs", document.at("graphs"));
  return graphs;
}

}  // namespace

ElementType element_type(const std::string& name, const std::string& field) {
  for (const ElementType type :
       {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16, ElementType::kInt64}) {
    if (name == element_name(type)) return type;
  }
  throw Error(Code::kCapability, "libr1v does not compute in this element type.",
              {field, "float32, float16, bfloat16 or int64", name, "use a libr1v of the bundle's version"});
}

size_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::kFloat32: return 4;
    case ElementType::kFloat16:
    case ElementType::kBFloat16: return 2;
    case ElementType::kInt8: return 1;
    case ElementType::kInt64: break;
  }
  return 8;
}

const char* element_name(ElementType type) {
  switch (type) {
    case ElementType::kFloat32: return "float32";
    case ElementType::kFloat16: return "float16";
    case ElementType::kBFloat16: return "bfloat16";
    case ElementType::kInt8: return "int8";
    case ElementType::kInt64: break;
  }
  return "int64";
}

const GraphContract& Contract::graph(const std::string& name) const {
  for (const GraphContract& each : graphs) {
    if (each.name == name) return each;
  }
  throw Error(Code::kInternal, "There is no such graph.", {"contract", "", name, ""});
}

Contract parse_contract(const Json& document, const std::string& where) {
  const Fields fields(document, where);
  require_schema_version(fields, contract::kContractSchemaVersion);
  const std::string compute = fields.text("compute");
  const Sizes sizes = parse_sizes(Fields(fields.at("sizes"), where + ": sizes"));
  return {element_type(compute, where + ": compute"), sizes, parse_graphs(fields, sizes)};
}

std::string cache_name(const char* pattern, int64_t layer) {
  std::string name = pattern;
  const std::string symbol = "{layer}";
  return name.replace(name.find(symbol), symbol.size(), std::to_string(layer));
}

std::vector<std::pair<std::string, std::string>> cache_pairs(int64_t layers) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (int64_t layer = 0; layer < layers; ++layer) {
    pairs.emplace_back(cache_name(contract::kPastKey, layer), cache_name(contract::kPresentKey, layer));
    pairs.emplace_back(cache_name(contract::kPastValue, layer), cache_name(contract::kPresentValue, layer));
  }
  return pairs;
}

}  // namespace r1v
