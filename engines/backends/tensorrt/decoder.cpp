#include "backends/tensorrt/decoder.h"

#include <algorithm>

#include "base/checked.h"
#include "bundle/contract.h"

namespace r1v::trt {
namespace {

const Binding& first_key(const Plan& plan) { return plan.binding(cache_name(contract::kPastKey, 0)); }

size_t size_of(int64_t a, int64_t b = 1, int64_t c = 1) {
  return checked_product({checked_cast<size_t>(a, contract::kDecoder), checked_cast<size_t>(b, contract::kDecoder),
                          checked_cast<size_t>(c, contract::kDecoder)},
                         contract::kDecoder);
}

}  // namespace

int64_t slots_of(const Plan& plan, const Sizes& sizes) {
  const Binding& key = first_key(plan);
  const auto* slots = key.shape.size() == 4 ? std::get_if<int64_t>(&key.shape[2]) : nullptr;
  const Binding expected{
      "", true, key.dtype, {std::string(kBatch), sizes.kv_heads, slots != nullptr ? *slots : 0, sizes.head_dim}};
  for (const auto& [past, present] : cache_pairs(sizes.layers)) {
    for (const std::string& name : {past, present}) {
      const Binding& cache = plan.binding(name);
      if (slots != nullptr && cache.shape == expected.shape && cache.dtype == expected.dtype) continue;
      throw Error(Code::kBundle, "A decoder plan's cache is not the contract's.",
                  {plan.file + ": " + name,
                   "[batch, " + std::to_string(sizes.kv_heads) + ", slots, " + std::to_string(sizes.head_dim) +
                       "], all of one type",
                   "", "build the bundle again"});
    }
  }
  return *slots;
}

TensorRtDecoder::TensorRtDecoder(Session& session, const Sizes& sizes, int64_t batch, int64_t capacity)
    : session_(session),
      sizes_(sizes),
      slots_(slots_of(session.plan(), sizes)),
      batch_(batch),
      capacity_(capacity),
      names_(cache_pairs(sizes.layers)) {
  require_built_for(batch, capacity);
  slot_bytes_ = size_of(sizes.head_dim, static_cast<int64_t>(element_bytes(first_key(session.plan()).dtype)));
  row_bytes_ = checked_product({size_of(sizes.kv_heads, slots_), slot_bytes_}, contract::kDecoder);
  const std::lock_guard<std::mutex> lock(session_.mutex());
  session_.stream().cuda().select();
  for (size_t i = 0; i < names_.size(); ++i) cache_.push_back(new_cache(batch));
}

void TensorRtDecoder::require_built_for(int64_t batch, int64_t capacity) const {
  const int64_t rows = session_.plan().max(kBatch);
  if (capacity <= slots_ && batch <= rows) return;
  throw Error(
      Code::kUsage, "The decoder engine is too small.",
      {session_.plan().file, "at most " + std::to_string(rows) + " sequences of " + std::to_string(slots_) + " tokens",
       std::to_string(batch) + " of " + std::to_string(capacity),
       "ask for fewer tokens, or build with a larger `capacity` or `max_batch` of the target"});
}

DeviceBuffer TensorRtDecoder::new_cache(int64_t batch) {
  return DeviceBuffer(session_.stream(), checked_product({size_of(batch), row_bytes_}, contract::kDecoder));
}

char* TensorRtDecoder::row(const DeviceBuffer& cache, int64_t row) const {
  return cache.data() + static_cast<size_t>(row) * row_bytes_;
}

std::map<std::string, void*> TensorRtDecoder::cache_from(int64_t row) const {
  std::map<std::string, void*> addresses;
  for (size_t i = 0; i < names_.size(); ++i) {
    addresses[names_[i].first] = addresses[names_[i].second] = this->row(cache_[i], row);
  }
  return addresses;
}

void TensorRtDecoder::step(const DecoderStep& step, float* logits) {
  if (step.first_row < 0 || step.rows < 1 || step.first_row + step.rows > batch_) {
    throw Error(Code::kInternal, "A step names rows that the cache does not have.", {"decoder", "", "", ""});
  }
  const std::lock_guard<std::mutex> lock(session_.mutex());
  session_.stream().cuda().select();
  if (step.seq == 1 && step.positions == 1) {
    decode(step, logits);
    return;
  }
  const int64_t most = session_.plan().max(kSeq);
  for (int64_t start = 0; start < step.seq; start += most) {
    run_piece(step, start, std::min(start + most, step.seq), logits);
  }
}

void TensorRtDecoder::write(BoundRun* run, const DecoderStep& step, int64_t hidden) {
  run->write(contract::kInputsEmbeds, step.inputs_embeds, size_of(step.rows, step.seq, hidden));
  run->write(contract::kPositionIds, step.position_ids, size_of(step.rows, step.seq));
  run->write(contract::kCacheWriteIndex, step.cache_write_index, size_of(step.rows));
  run->write(contract::kLogitsIndex, step.logits_index, size_of(step.rows, step.positions));
}

void TensorRtDecoder::decode(const DecoderStep& step, float* logits) {
  const std::pair<int64_t, int64_t> rows(step.first_row, step.rows);
  const auto found = one_token_.find(rows);
  BoundRun* run = found != one_token_.end() ? &found->second : nullptr;
  if (run == nullptr) {
    const SymbolSizes sizes = {{kBatch, step.rows}, {kSeq, 1}, {kLogitPositions, 1}};
    run = &one_token_.try_emplace(rows, session_, sizes, cache_from(step.first_row)).first->second;
  }
  write(run, step, sizes_.hidden);
  run->run();
  run->read(contract::kLogits, logits, size_of(step.rows, sizes_.vocab));
  if (found == one_token_.end()) run->capture();
}

void TensorRtDecoder::run_piece(const DecoderStep& step, int64_t start, int64_t stop, float* logits) {
  const int64_t tokens = stop - start, hidden = sizes_.hidden, vocab = sizes_.vocab;
  std::vector<float> embeds;
  std::vector<int64_t> position_ids, write_index, index;
  for (int64_t row = 0; row < step.rows; ++row) {
    const float* row_embeds = step.inputs_embeds + row * step.seq * hidden;
    embeds.insert(embeds.end(), row_embeds + start * hidden, row_embeds + stop * hidden);
    const int64_t* row_positions = step.position_ids + row * step.seq;
    position_ids.insert(position_ids.end(), row_positions + start, row_positions + stop);
    write_index.push_back(step.cache_write_index[row] + start);
    for (int64_t i = 0; i < step.positions; ++i) {
      index.push_back(std::clamp<int64_t>(step.logits_index[row * step.positions + i] - start, 0, tokens - 1));
    }
  }
  DecoderStep piece{step.rows,          tokens,  step.positions, embeds.data(), position_ids.data(),
                    write_index.data(), nullptr, index.data(),   step.first_row};
  BoundRun& run = prompt_run(step.first_row, {{kBatch, step.rows}, {kSeq, tokens}, {kLogitPositions, step.positions}});
  write(&run, piece, hidden);
  run.run();
  std::vector<float> found(size_of(step.rows, step.positions, vocab));
  run.read(contract::kLogits, found.data(), found.size());
  for (int64_t i = 0; i < step.rows * step.positions; ++i) {
    if (step.logits_index[i] < start || step.logits_index[i] >= stop) continue;
    std::copy_n(found.begin() + i * vocab, vocab, logits + i * vocab);
  }
}

BoundRun& TensorRtDecoder::prompt_run(int64_t first_row, SymbolSizes sizes) {
  if (prompt_ == nullptr || prompt_->sizes() != sizes) {
    prompt_.reset();
    prompt_ = std::make_unique<BoundRun>(session_, std::move(sizes), cache_from(first_row));
  }
  prompt_->set_given(cache_from(first_row));
  return *prompt_;
}

void TensorRtDecoder::copy_row(int64_t source, int64_t target, int64_t length) {
  if (source == target) return;
  const std::lock_guard<std::mutex> lock(session_.mutex());
  session_.stream().cuda().select();
  const size_t head_bytes = size_of(slots_) * slot_bytes_, bytes = size_of(length) * slot_bytes_;
  for (const DeviceBuffer& cache : cache_) {
    session_.stream().copy_pieces(row(cache, target), head_bytes, row(cache, source), head_bytes, bytes,
                                  size_of(sizes_.kv_heads));
  }
}

void TensorRtDecoder::swap_rows(int64_t a, int64_t b, int64_t length) {
  if (a == b) return;
  const std::lock_guard<std::mutex> lock(session_.mutex());
  Stream& stream = session_.stream();
  stream.cuda().select();
  const size_t head_bytes = size_of(slots_) * slot_bytes_, bytes = size_of(length) * slot_bytes_;
  const size_t heads = size_of(sizes_.kv_heads);
  const DeviceBuffer held(stream, heads * bytes);
  for (const DeviceBuffer& cache : cache_) {
    char *first = row(cache, a), *second = row(cache, b);
    stream.copy_pieces(held.data(), bytes, first, head_bytes, bytes, heads);
    stream.copy_pieces(first, head_bytes, second, head_bytes, bytes, heads);
    stream.copy_pieces(second, head_bytes, held.data(), bytes, bytes, heads);
  }
  stream.synchronize();
}

void TensorRtDecoder::resize(int64_t batch, int64_t capacity, const std::vector<int64_t>&) {
  require_built_for(batch, capacity);
  const std::lock_guard<std::mutex> lock(session_.mutex());
  session_.stream().cuda().select();
  one_token_.clear();
  prompt_.reset();
  const size_t kept = size_of(std::min(batch, batch_)) * row_bytes_;
  for (DeviceBuffer& cache : cache_) {
    // One tensor after the other, so that little is there twice.
    DeviceBuffer larger = new_cache(batch);
    session_.stream().copy(larger.data(), cache.data(), kept, cudaMemcpyDeviceToDevice);
    session_.stream().synchronize();
    cache = std::move(larger);
  }
  batch_ = batch;
  capacity_ = capacity;
}

}  // namespace r1v::trt
