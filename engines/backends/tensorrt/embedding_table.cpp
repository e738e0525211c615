#include "backends/tensorrt/embedding_table.h"

#include <optional>
#include <string_view>
#include <vector>

#include "base/protobuf.h"
#include "bundle/contract.h"
#include "bundle/numbers.h"

namespace r1v::trt {
namespace {

using protobuf::Field, protobuf::FieldReader;

const std::string kGraph = "graphs/embed.onnx";
// Numbers of fields, from onnx.proto of ONNX: of ModelProto, GraphProto and TensorProto.
constexpr uint64_t kModelGraph = 7, kInitializer = 5, kDims = 1, kDataType = 2, kExternalData = 13;

[[noreturn]] void fail(const std::string& found) {
  throw Error(Code::kBundle, "The bundle's embeddings cannot be read.", {kGraph, "", found, "build the bundle again"});
}

// A tensor of a graph whose content is in another file (onnx.proto: TensorProto).
struct ExternalTensor {
  std::vector<uint64_t> dims;
  uint64_t dtype = 0, offset = 0;
  std::string location;
};

uint64_t number_of(std::string_view text) {
  uint64_t number = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9' || number > (uint64_t{1} << 59)) fail("an offset that is no number");
    number = 10 * number + static_cast<uint64_t>(digit - '0');
  }
  return number;
}

void read_location(std::string_view bytes, ExternalTensor* tensor) {
  std::string_view key, value;
  FieldReader fields(bytes, kGraph);
  while (const std::optional<Field> field = fields.next()) (field->number == 1 ? key : value) = field->content;
  if (key == "location") tensor->location = value;
  if (key == "offset") tensor->offset = number_of(value);
}

ExternalTensor read_tensor(std::string_view bytes) {
  ExternalTensor tensor;
  FieldReader fields(bytes, kGraph);
  while (const std::optional<Field> field = fields.next()) {
    if (field->number == kDims && field->kind == protobuf::kVarint) tensor.dims.push_back(field->value);
    if (field->number == kDims) {
      FieldReader packed(field->content, kGraph);
      while (!packed.at_end()) tensor.dims.push_back(packed.varint());
    }
    if (field->number == kDataType) tensor.dtype = field->value;
    if (field->number == kExternalData) read_location(field->content, &tensor);
  }
  return tensor;
}

// The initializer of the model's graph that is in another file: the graph has one.
ExternalTensor read_table(std::string_view model) {
  FieldReader of_model(model, kGraph);
  while (const std::optional<Field> graph = of_model.next()) {
    if (graph->number != kModelGraph) continue;
    FieldReader of_graph(graph->content, kGraph);
    while (const std::optional<Field> initializer = of_graph.next()) {
      if (initializer->number != kInitializer) continue;
      ExternalTensor tensor = read_tensor(initializer->content);
      if (!tensor.location.empty()) return tensor;
    }
  }
  fail("no weights in another file");
}

ElementType type_of(uint64_t onnx_type) {
  switch (onnx_type) {
    case 1: return ElementType::kFloat32;
    case 10: return ElementType::kFloat16;
    case 16: return ElementType::kBFloat16;
    default: fail("weights of ONNX type " + std::to_string(onnx_type));
  }
}

}  // namespace

EmbeddingTable::EmbeddingTable(const Bundle& bundle)
    : image_token_id_(bundle.pipeline.image_token_id),
      vocab_(bundle.contract.sizes.vocab),
      hidden_(bundle.contract.sizes.hidden) {
  const ExternalTensor table = read_table(bundle.read(kGraph, kGraphLimitBytes));
  if (table.dims != std::vector<uint64_t>{static_cast<uint64_t>(vocab_), static_cast<uint64_t>(hidden_)}) {
    fail("a table that is not [vocab, hidden] of the contract");
  }
  dtype_ = type_of(table.dtype);
  const std::string path = "graphs/" + table.location;
  if (!is_inside(path)) fail("weights outside of the bundle");
  file_ = std::make_unique<const MappedFile>(bundle.folder / path);
  const size_t bytes = static_cast<size_t>(vocab_ * hidden_) * element_bytes(dtype_);
  if (table.offset > file_->size() || bytes > file_->size() - table.offset) fail(path + " is cut short");
  rows_ = file_->data() + table.offset;
}

void EmbeddingTable::look_up(const int64_t* input_ids, int64_t count, const float* image_embeds, int64_t image_tokens,
                             float* inputs_embeds) const {
  const size_t row_bytes = static_cast<size_t>(hidden_) * element_bytes(dtype_);
  const auto numbers = static_cast<size_t>(hidden_);
  std::vector<char> rounded(row_bytes);
  int64_t used = 0;
  for (int64_t i = 0; i < count; ++i) {
    const char* row = rounded.data();
    if (input_ids[i] == image_token_id_ && used < image_tokens) {
      convert(image_embeds + used++ * hidden_, numbers, dtype_, rounded.data(), contract::kEmbed,
              contract::kImageEmbeds);
    } else if (input_ids[i] >= 0 && input_ids[i] < vocab_) {
      row = rows_ + static_cast<size_t>(input_ids[i]) * row_bytes;
    } else {
      throw Error(Code::kInput, "A token id is out of range.",
                  {"prompt", "0 to " + std::to_string(vocab_ - 1), std::to_string(input_ids[i]), ""});
    }
    to_float(row, numbers, dtype_, inputs_embeds + i * hidden_);
  }
}

}  // namespace r1v::trt
