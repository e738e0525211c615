// A bundle with plans for the libraries that stand in.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/half.h"
#include "base/sha256.h"
#include "bundle/bundle.h"
#include "bundle/contract.h"
#include "tests/temporary_folder.h"

namespace r1v {

// A field of a protobuf message.
inline std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
inline std::string field(unsigned number, uint64_t value) { return varint(number << 3) + varint(value); }
inline std::string field(unsigned number, const std::string& content) {
  return varint(number << 3 | 2) + varint(content.size()) + content;
}

// An ONNX model with the weights [vocab, hidden] in embed.data, behind some bytes.
inline std::string embed_model(const Sizes& sizes, unsigned onnx_type, uint64_t offset) {
  const auto entry = [](const char* key, const std::string& value) {
    return field(13, field(1, key) + field(2, value));
  };
  const std::string constant = field(5, field(1, 3) + field(2, 7) + field(9, std::string(24, 'x')));
  const std::string table = field(1, static_cast<uint64_t>(sizes.vocab)) +
                            field(1, static_cast<uint64_t>(sizes.hidden)) + field(2, onnx_type) + field(8, "table") +
                            entry("location", "embed.data") + entry("offset", std::to_string(offset)) + field(14, 1);
  return field(1, 10) + field(7, field(2, "embed") + constant + field(5, table));
}

class PlanBundle {
 public:
  // Plans of at most 2 tiles, 3 rows, 16 new tokens of each, and some slots.
  explicit PlanBundle(int64_t slots = 512) {
    bundle.folder = folder_.path();
    bundle.contract = {ElementType::kFloat16, {4, 2, 3, 2, 40, 2, 2, 2}, {}};
    bundle.pipeline.image_token_id = 0;
    const Sizes& size = bundle.contract.sizes;
    const Json pixels = {"tiles", 3, size.tile_size, size.tile_size};
    const Json features = {"tiles", size.tokens_per_tile, size.vision_features};
    const Json embeds = {"tiles", size.tokens_per_tile, size.hidden};
    const Json tiles = {{{"tiles", {1, 1, 1}}}, {{"tiles", {2, 2, 2}}}};
    add_plan("vision", tiles,
             {input("pixel_values", pixels), output("vision_features", features), output("image_embeds", embeds)});
    add_plan("projector", tiles, {input("vision_features", features), output("image_embeds", embeds)});
    Json decoder = {input("inputs_embeds", {"batch", "seq", size.hidden}),
                    input("position_ids", {"batch", "seq"}, "int64"), input("cache_write_index", {"batch"}, "int64"),
                    input("logits_index", {"batch", "logit_positions"}, "int64"),
                    output("logits", {"batch", "logit_positions", size.vocab})};
    for (const auto& [past, present] : cache_pairs(size.layers)) {
      const Json cache = {"batch", size.kv_heads, slots, size.head_dim};
      decoder.push_back(input(past, cache));
      decoder.push_back(output(present, cache));
    }
    add_plan("decoder", {{{"batch", {1, 1, 3}}, {"seq", {1, 16, 16}}, {"logit_positions", {1, 1, 1}}}}, decoder);
    EngineDocument& engine = bundle.pipeline.engines["tensorrt"];
    engine.options = {{"graphs", Json::object()}, {"descriptions", Json::object()}};
    for (const char* graph : {"vision", "projector", "decoder"}) {
      engine.files[graph] = std::string(graph) + ".plan";
      engine.options["descriptions"][graph] = std::string(graph) + ".json";
    }
    add("graphs/embed.onnx", embed_model(size, 10, 4));
    std::string table = "....";
    for (int64_t id = 0; id < size.vocab; ++id) {
      const uint16_t half = float_to_half(static_cast<float>(id));
      for (int64_t i = 0; i < size.hidden; ++i) table.append(reinterpret_cast<const char*>(&half), sizeof half);
    }
    folder_.write("graphs/embed.data", table);
  }

  // A file that the manifest knows.
  void add(const std::string& path, const std::string& content) {
    folder_.write(path, content);
    Sha256 sha256;
    sha256.update(content.data(), content.size());
    bundle.manifest.files[path] = {sha256.hex(), content.size()};
  }

  void write(const std::string& path, const std::string& content) const { folder_.write(path, content); }

  Bundle bundle{};

 private:
  static Json tensor(const std::string& name, bool is_input, const Json& shape, const std::string& dtype) {
    return {{"name", name}, {"is_input", is_input}, {"dtype", dtype}, {"shape", shape}};
  }
  static Json input(const std::string& name, const Json& shape, const std::string& dtype = "float16") {
    return tensor(name, true, shape, dtype);
  }
  static Json output(const std::string& name, const Json& shape) { return tensor(name, false, shape, "float16"); }

  void add_plan(const std::string& graph, const Json& profiles, const Json& bindings) {
    Json description = {{"bindings", bindings}, {"profiles", profiles}};
    const std::string plan = description.dump();
    folder_.write("engines/tensorrt/" + graph + ".plan", plan);
    description.update({{"library", "tensorrt"},
                        {"version", "10.13.3.9"},
                        {"compute_capabilities", {89}},
                        {"fused_attention", true},
                        {"stripped", false},
                        {"weight_bytes", 0},
                        {"plan_bytes", plan.size()},
                        {"sha256", ""}});
    add("engines/tensorrt/" + graph + ".json", description.dump());
  }

  TemporaryFolder folder_;
};

}  // namespace r1v
