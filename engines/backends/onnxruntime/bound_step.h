// A run of the decoder with fixed shapes, its buffers bound once.
#pragma once

#include <vector>

#include "backends/onnxruntime/decoder.h"

namespace r1v::ort {

class BoundStep {
 public:
  // `rows` rows of the cache from `first_row` on, `seq` new tokens of each, logits after `positions` of them.
  BoundStep(const OnnxRuntimeDecoder& decoder, int64_t first_row, int64_t rows, int64_t seq, int64_t positions);

  bool is_for(int64_t first_row, int64_t rows) const { return first_row == first_row_ && rows == rows_; }

  // Writes logits [rows, positions, vocab] for inputs of these shapes.
  void run(const DecoderStep& step, float* logits);

 private:
  struct Input {
    const char* name;
    std::vector<int64_t> shape;
    ElementType type;
    std::vector<char> buffer;
    Owned<Value> value;
  };

  void add_input(const char* name, std::vector<int64_t> shape, ElementType type);
  void bind_inputs();
  void bind_cache(const OnnxRuntimeDecoder& decoder);
  std::vector<Array> arrays() const;

  const GraphSession& session_;
  const Sizes sizes_;
  const bool on_cpu_;
  const int64_t first_row_, rows_, seq_;
  Owned<MemoryInfo> host_;
  Owned<IoBinding> binding_;
  std::vector<Input> inputs_;
  std::vector<char> logits_;
  std::vector<Owned<Value>> values_;  // that are bound besides the inputs
};

}  // namespace r1v::ort
