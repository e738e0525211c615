#include "backends/onnxruntime/decoder.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "backends/onnxruntime/bound_step.h"
#include "base/checked.h"

namespace r1v::ort {
namespace {

size_t bytes_of(const GraphSession& session, const std::vector<int64_t>& shape) {
  size_t bytes = element_bytes(session.cache());
  for (int64_t size : shape) bytes = checked_product({bytes, checked_cast<size_t>(size, "cache")}, "cache");
  return bytes;
}

}  // namespace

CacheTensor::CacheTensor(const GraphSession& session, const std::vector<int64_t>& shape, Device device,
                         Allocator* gpu) {
  const ElementType type = session.cache();
  if (device == Device::kCpu) {
    host_.emplace(bytes_of(session, shape));
    data_ = host_->data();
    return;
  }
  const Api& api = session.library().api();
  Value* value = nullptr;
  session.check_run(api.CreateTensorAsOrtValue(gpu, shape.data(), shape.size(), data_type(type), &value), {});
  value_ = Owned<Value>(value, api.ReleaseValue);
  void* data = nullptr;
  session.check_run(api.GetTensorMutableData(value, &data), {});
  data_ = static_cast<char*>(data);
}

bool CacheTensor::resize(size_t bytes) {
  const bool done = host_->resize(bytes);
  data_ = host_->data();
  return done;
}

OnnxRuntimeDecoder::OnnxRuntimeDecoder(const GraphSession& session, const Sizes& sizes, int64_t batch, int64_t capacity,
                                       const DeviceOptions& device, int64_t most_slots)
    : session_(session), sizes_(sizes), batch_(batch), capacity_(capacity), slots_(capacity), device_(device) {
  names_ = cache_pairs(sizes.layers);
  if (device.device == Device::kCpu) {
    memory_ = cpu_memory(session.library());
  } else {
    const Api& api = session.library().api();
    MemoryInfo* memory = nullptr;
    session.check_run(api.CreateMemoryInfo("Cuda", kArenaAllocator, device.gpu, kDefaultMemory, &memory), {});
    memory_ = Owned<MemoryInfo>(memory, api.ReleaseMemoryInfo);
    Allocator* allocator = nullptr;
    session.check_run(api.CreateAllocator(session.handle(), memory, &allocator), {});
    gpu_ = Owned<Allocator>(allocator, api.ReleaseAllocator);
  }
  allocate(most_slots);
}

OnnxRuntimeDecoder::~OnnxRuntimeDecoder() = default;

void OnnxRuntimeDecoder::allocate(int64_t most_slots) {
  const auto make = [&](int64_t slots) {
    cache_.clear();
    for (size_t i = 0; i < names_.size(); ++i) {
      cache_.emplace_back(session_, shape(batch_, slots), device_.device, gpu_.get());
    }
    slots_ = slots;
  };
  if (device_.device == Device::kCpu && most_slots > capacity_) {
    try {
      return make(most_slots);
    } catch (const std::bad_alloc&) {  // The system backs addresses with memory, or has not as many.
    }
  }
  make(capacity_);
}

std::vector<int64_t> OnnxRuntimeDecoder::shape(int64_t batch, int64_t slots) const {
  return {batch, sizes_.kv_heads, slots, sizes_.head_dim};
}

void OnnxRuntimeDecoder::step(const DecoderStep& step, float* logits) {
  if (step.first_row < 0 || step.rows < 1 || step.first_row + step.rows > batch_) {
    throw Error(Code::kInternal, "A step names rows that the cache does not have.", {"decoder", "", "", ""});
  }
  if (step.seq == 1 && step.positions == 1) {
    if (one_token_ == nullptr || !one_token_->is_for(step.first_row, step.rows)) {
      one_token_ = std::make_unique<BoundStep>(*this, step.first_row, step.rows, 1, 1);
    }
    one_token_->run(step, logits);
    return;
  }
  for (int64_t row = 0; row < step.rows; ++row) {
    const int64_t* index = step.logits_index + row * step.positions;
    const int64_t seq = *std::max_element(index, index + step.positions) + 1;
    if (seq < 1 || seq > step.seq) {
      throw Error(Code::kInternal, "A step asks for logits after a token that it does not have.",
                  {"decoder", "", "", ""});
    }
    const int64_t length = step.cache_write_index[row] + seq;
    DecoderStep alone{1,
                      seq,
                      step.positions,
                      step.inputs_embeds + row * step.seq * sizes_.hidden,
                      step.position_ids + row * step.seq,
                      step.cache_write_index + row,
                      &length,
                      index,
                      step.first_row + row};
    BoundStep(*this, step.first_row + row, 1, seq, step.positions)
        .run(alone, logits + row * step.positions * sizes_.vocab);
  }
}

void OnnxRuntimeDecoder::require_host() const {
  if (device_.device == Device::kCpu) return;
  throw Error(Code::kCapability, "This version of libr1v cannot move rows of a cache on a GPU.",
              {"decoder", "", "", "answer one request at a time, or use the device cpu"});
}

size_t OnnxRuntimeDecoder::slot_bytes() const {
  return static_cast<size_t>(sizes_.head_dim) * element_bytes(session_.cache());
}

size_t OnnxRuntimeDecoder::offset(int64_t row, int64_t head, int64_t slots) const {
  return static_cast<size_t>((row * sizes_.kv_heads + head) * slots) * slot_bytes();
}

void OnnxRuntimeDecoder::copy_row(int64_t source, int64_t target, int64_t length) {
  require_host();
  if (source == target) return;
  for (const CacheTensor& tensor : cache_) {
    for (int64_t head = 0; head < sizes_.kv_heads; ++head) {
      std::memcpy(slots(tensor, target, head), slots(tensor, source, head),
                  static_cast<size_t>(length) * slot_bytes());
    }
  }
}

void OnnxRuntimeDecoder::swap_rows(int64_t a, int64_t b, int64_t length) {
  require_host();
  if (a == b) return;
  for (const CacheTensor& tensor : cache_) {
    for (int64_t head = 0; head < sizes_.kv_heads; ++head) {
      char* first = slots(tensor, a, head);
      std::swap_ranges(first, first + static_cast<size_t>(length) * slot_bytes(), slots(tensor, b, head));
    }
  }
}

void OnnxRuntimeDecoder::resize(int64_t batch, int64_t capacity, const std::vector<int64_t>& lengths) {
  require_host();
  one_token_.reset();
  const bool in_place = capacity <= slots_;
  const int64_t slots = in_place ? slots_ : capacity;
  for (CacheTensor& tensor : cache_) {
    // One tensor after the other, so that little is there twice.
    if (in_place && tensor.resize(bytes_of(session_, shape(batch, slots)))) {
      release_behind(tensor, lengths);
    } else {
      tensor = copied(tensor, batch, slots, lengths);
    }
  }
  batch_ = batch;
  capacity_ = capacity;
  slots_ = slots;
}

CacheTensor OnnxRuntimeDecoder::copied(const CacheTensor& tensor, int64_t batch, int64_t slots_of_each,
                                       const std::vector<int64_t>& lengths) {
  CacheTensor larger(session_, shape(batch, slots_of_each), device_.device, gpu_.get());
  const int64_t kept = std::min({batch, batch_, static_cast<int64_t>(lengths.size())});
  for (int64_t row = 0; row < kept; ++row) {
    const auto length = static_cast<size_t>(std::min({lengths[static_cast<size_t>(row)], slots_of_each, slots_}));
    for (int64_t head = 0; head < sizes_.kv_heads; ++head) {
      std::memcpy(larger.data() + offset(row, head, slots_of_each), slots(tensor, row, head), length * slot_bytes());
    }
  }
  return larger;
}

void OnnxRuntimeDecoder::release_behind(CacheTensor& tensor, const std::vector<int64_t>& lengths) {
  for (size_t row = 0; row < lengths.size(); ++row) {
    for (int64_t head = 0; head < sizes_.kv_heads; ++head) {
      const size_t begin = offset(static_cast<int64_t>(row), head, slots_);
      tensor.release(begin + static_cast<size_t>(lengths[row]) * slot_bytes(),
                     begin + static_cast<size_t>(slots_) * slot_bytes());
    }
  }
}

}  // namespace r1v::ort
