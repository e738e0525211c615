// contract.json: the graphs of a bundle, every tensor between them, and the sizes that the checkpoint fixes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace r1v {

enum class ElementType { kFloat32, kFloat16, kBFloat16, kInt64, kInt8 };

size_t element_bytes(ElementType type);
const char* element_name(ElementType type);
// The type of a name such as "float16". Throws kCapability, naming `field`: libr1v does not know it.
ElementType element_type(const std::string& name, const std::string& field);

// Sizes that the checkpoint fixes; each is positive and small enough that products of any three fit into 64 bits.
struct Sizes {
  int64_t tile_size, tokens_per_tile, vision_features, hidden, vocab, layers, kv_heads, head_dim;
};

struct TensorContract {
  std::string name;
  ElementType dtype;
};

struct GraphContract {
  std::string name;
  std::vector<TensorContract> inputs, outputs;
};

// The parts of contract.json that a runtime needs. Names are those of bundle/contract.h: another name is refused.
struct Contract {
  ElementType compute;
  Sizes sizes;
  std::vector<GraphContract> graphs;

  const GraphContract& graph(const std::string& name) const;
};

// Throws kBundle: another schema version, a wrong field, or tensors that this version does not know.
Contract parse_contract(const Json& document, const std::string& where);

// Name of a layer's cache tensor, from its pattern in bundle/contract.h.
std::string cache_name(const char* pattern, int64_t layer);

// (past, present) names of every cache tensor, in the order of the decoder's inputs.
std::vector<std::pair<std::string, std::string>> cache_pairs(int64_t layers);

}  // namespace r1v
