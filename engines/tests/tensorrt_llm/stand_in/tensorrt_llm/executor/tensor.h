// What libr1v uses of TensorRT-LLM's tensors, written for the tests after the public header of this name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <memory>

#include "tensorrt_llm/executor/types.h"

namespace tensorrt_llm::runtime {
class ITensor;
}  // namespace tensorrt_llm::runtime

namespace tensorrt_llm::executor {

// Does not hold the sizes: they live as long as what it is made of.
class Shape {
 public:
  using DimType64 = int64_t;

  Shape() = default;
  Shape(DimType64 const* data, std::size_t size) : data_(data), size_(size) {}
  Shape(std::initializer_list<DimType64> dims) : Shape(std::data(dims), dims.size()) {}

  DimType64 const& operator[](std::size_t index) const { return data_[index]; }
  std::size_t size() const { return size_; }

 private:
  DimType64 const* data_ = nullptr;
  std::size_t size_ = 0;
};

class STAND_IN_API Tensor {
 public:
  // Allocates a CPU tensor.
  static Tensor cpu(DataType dataType, Shape shape = {});

  Tensor() noexcept = default;

  [[nodiscard]] void* getData();
  [[nodiscard]] void const* getData() const;
  [[nodiscard]] DataType getDataType() const;
  [[nodiscard]] Shape getShape() const;
  [[nodiscard]] std::size_t getSizeInBytes() const;

 private:
  explicit Tensor(std::shared_ptr<runtime::ITensor> tensor);

  std::shared_ptr<runtime::ITensor> mTensor;
};

}  // namespace tensorrt_llm::executor
