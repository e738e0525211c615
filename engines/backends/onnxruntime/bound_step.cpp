#include "backends/onnxruntime/bound_step.h"

#include <cstring>

#include "base/checked.h"
#include "bundle/contract.h"
#include "bundle/numbers.h"

namespace r1v::ort {
namespace {

size_t product(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t size : shape) count = checked_product({count, checked_cast<size_t>(size, "decoder")}, "decoder");
  return count;
}

}  // namespace

BoundStep::BoundStep(const OnnxRuntimeDecoder& decoder, int64_t first_row, int64_t rows, int64_t seq, int64_t positions)
    : session_(decoder.session_),
      sizes_(decoder.sizes_),
      on_cpu_(decoder.device_.device == Device::kCpu),
      first_row_(first_row),
      rows_(rows),
      seq_(seq),
      host_(cpu_memory(session_.library())) {
  const Api& api = session_.library().api();
  IoBinding* binding = nullptr;
  session_.check_run(api.CreateIoBinding(session_.handle(), &binding), {});
  binding_ = Owned<IoBinding>(binding, api.ReleaseIoBinding);
  inputs_.reserve(5);  // Values point into the buffers.
  add_input(contract::kInputsEmbeds, {rows, seq, sizes_.hidden}, session_.compute());
  add_input(contract::kPositionIds, {rows, seq}, ElementType::kInt64);
  add_input(contract::kCacheWriteIndex, {rows}, ElementType::kInt64);
  add_input(contract::kCacheLength, {rows}, ElementType::kInt64);
  add_input(contract::kLogitsIndex, {rows, positions}, ElementType::kInt64);
  bind_inputs();
  const std::vector<int64_t> logits_shape = {rows, positions, sizes_.vocab};
  logits_.resize(checked_product({product(logits_shape), element_bytes(session_.compute())}, "logits"));
  values_.push_back(
      tensor_on(session_.library(), host_.get(), logits_.data(), logits_.size(), logits_shape, session_.compute()));
  session_.check_run(api.BindOutput(binding_.get(), contract::kLogits, values_.back().get()), arrays());
  bind_cache(decoder);
}

void BoundStep::add_input(const char* name, std::vector<int64_t> shape, ElementType type) {
  Input input{name, std::move(shape), type, {}, {}};
  input.buffer.resize(checked_product({product(input.shape), element_bytes(type)}, name));
  input.value = tensor_on(session_.library(), host_.get(), input.buffer.data(), input.buffer.size(), input.shape, type);
  inputs_.push_back(std::move(input));
}

void BoundStep::bind_inputs() {
  const Api& api = session_.library().api();
  for (const Input& input : inputs_) {
    session_.check_run(api.BindInput(binding_.get(), input.name, input.value.get()), arrays());
  }
}

void BoundStep::bind_cache(const OnnxRuntimeDecoder& decoder) {
  const Library& library = session_.library();
  const std::vector<int64_t> shape = {rows_, sizes_.kv_heads, decoder.slots_, sizes_.head_dim};
  const size_t bytes = checked_product({product(shape), element_bytes(session_.cache())}, "cache");
  const size_t offset = bytes / static_cast<size_t>(rows_) * static_cast<size_t>(first_row_);
  for (size_t i = 0; i < decoder.cache_.size(); ++i) {
    const auto& [past, present] = decoder.names_[i];
    values_.push_back(
        tensor_on(library, decoder.memory_.get(), decoder.cache_[i].data() + offset, bytes, shape, session_.cache()));
    session_.check_run(library.api().BindInput(binding_.get(), past.c_str(), values_.back().get()), arrays());
    session_.check_run(library.api().BindOutput(binding_.get(), present.c_str(), values_.back().get()), arrays());
  }
}

std::vector<Array> BoundStep::arrays() const {
  std::vector<Array> arrays;
  for (const Input& input : inputs_) arrays.push_back({input.buffer.data(), input.shape, input.type});
  return arrays;
}

void BoundStep::run(const DecoderStep& step, float* logits) {
  convert(step.inputs_embeds, product(inputs_[0].shape), session_.compute(), inputs_[0].buffer.data(),
          contract::kDecoder, contract::kInputsEmbeds);
  const int64_t* integers[] = {step.position_ids, step.cache_write_index, step.cache_length, step.logits_index};
  for (size_t i = 0; i < 4; ++i) std::memcpy(inputs_[i + 1].buffer.data(), integers[i], inputs_[i + 1].buffer.size());
  if (!on_cpu_) bind_inputs();  // Binding is what copies to a GPU; on the CPU the buffers themselves are read.
  session_.check_run(
      session_.library().api().RunWithBinding(session_.handle(), seq_ > 1 ? session_.once() : nullptr, binding_.get()),
      arrays());
  to_float(logits_.data(), logits_.size() / element_bytes(session_.compute()), session_.compute(), logits);
}

}  // namespace r1v::ort
