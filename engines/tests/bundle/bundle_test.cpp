#include "bundle/bundle.h"

#include <gtest/gtest.h>

#include "bundle/contract.h"
#include "tests/error_message.h"

namespace r1v {
namespace {

Json tensors(const std::vector<std::string>& names) {
  Json list = Json::array();
  for (const std::string& name : names) {
    list.push_back({{"name", name}, {"shape", Json::array()}, {"dtype", name == "input_ids" ? "int64" : "float32"}});
  }
  return list;
}

Json contract_of(const Json& layers) {
  std::vector<std::string> inputs = {"inputs_embeds", "position_ids", "cache_write_index", "cache_length",
                                     "logits_index"};
  std::vector<std::string> outputs = {"logits"};
  for (const auto& [past, present] : cache_pairs(2)) {
    inputs.push_back(past);
    outputs.push_back(present);
  }
  const auto graph = [](const char* name, const Json& in, const Json& out) {
    return Json{{"name", name}, {"inputs", in}, {"outputs", out}};
  };
  return {{"schema_version", 1},
          {"compute", "float32"},
          {"sizes",
           {{"tile_size", 112},
            {"tokens_per_tile", 16},
            {"vision_features", 64},
            {"hidden", 32},
            {"vocab", 100},
            {"layers", layers},
            {"kv_heads", 2},
            {"head_dim", 8}}},
          {"graphs",
           {graph("vision", tensors({"pixel_values"}), tensors({"vision_features"})),
            graph("projector", tensors({"vision_features"}), tensors({"image_embeds"})),
            graph("embed", tensors({"input_ids", "image_embeds"}), tensors({"inputs_embeds"})),
            graph("decoder", tensors(inputs), tensors(outputs))}}};
}

Json pipeline() {
  return Json::parse(R"({
    "schema_version": 1,
    "tokenizer": {"definition": "tokenizer.json"},
    "prompt": {"images": {"tokens_per_tile": 16, "context": {"id": 7}}},
    "positions": {"max_positions": 4096},
    "engines": {"onnxruntime": {"files": {"vision": "vision.onnx"}, "options": {}}}
  })");
}

TEST(Contract, IsReadWithItsSizesAndTensors) {
  const Contract contract = parse_contract(contract_of(2), "contract.json");
  EXPECT_EQ(contract.sizes.hidden, 32);
  EXPECT_EQ(contract.graph("decoder").inputs.back().name, "past_key_values.1.value");
  EXPECT_EQ(contract.graph("decoder").outputs.back().name, "present.1.value");
}

TEST(Contract, AbsurdSizesAndUnknownTensorsAreRefused) {
  for (const Json& layers : {Json(0), Json(-1), Json(1ull << 62), Json(1.5), Json("2"), Json()}) {
    EXPECT_NE(error_message([&] { parse_contract(contract_of(layers), "c"); }).find("c: sizes.layers"),
              std::string::npos);
  }
  EXPECT_NE(error_message([&] { parse_contract(contract_of(3), "c"); }).find("past_key_values.2.key"),
            std::string::npos);
  Json other = contract_of(2);
  other["compute"] = "int4";
  EXPECT_THROW(parse_contract(other, "c"), Error);
  other = contract_of(2);
  other["graphs"].erase(1);
  EXPECT_THROW(parse_contract(other, "c"), Error);
}

TEST(Pipeline, IsReadWithWhatTheRunnerNeeds) {
  const Pipeline parsed = parse_pipeline(pipeline(), "pipeline.json");
  EXPECT_EQ(parsed.image_token_id, 7);
  EXPECT_EQ(parsed.tokenizer_definition, "tokenizer.json");
  EXPECT_EQ(parsed.engines.at("onnxruntime").files.at("vision"), "vision.onnx");
}

TEST(Pipeline, PathsThatLeadOutAreRefused) {
  for (const char* path : {"../x", "/x", ""}) {
    Json document = pipeline();
    document["engines"]["onnxruntime"]["files"]["vision"] = path;
    EXPECT_THROW(parse_pipeline(document, "p"), Error) << path;
    document = pipeline();
    document["tokenizer"]["definition"] = path;
    EXPECT_THROW(parse_pipeline(document, "p"), Error) << path;
  }
  Json document = pipeline();
  document["engines"]["../other"] = document["engines"]["onnxruntime"];
  EXPECT_THROW(parse_pipeline(document, "p"), Error);
}

TEST(Pipeline, EveryFieldThatIsMissingIsNamed) {
  const Json whole = pipeline();
  for (const auto& [name, value] : whole.items()) {
    Json document = pipeline();
    document.erase(name);
    const std::string message = error_message([&] { parse_pipeline(document, "p"); });
    EXPECT_TRUE(message.find("p." + name) != std::string::npos || name == "schema_version") << message;
    EXPECT_NE(message, "no error") << name;
  }
}

}  // namespace
}  // namespace r1v
