// The graphs that encode images, on ONNX Runtime sessions.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "backends/engine.h"
#include "backends/onnxruntime/images.h"
#include "backends/onnxruntime/session.h"

namespace r1v::ort {

// A graph's session, opened when it is first needed.
class LazySession {
 public:
  const GraphSession& get(const Library& library, const Bundle& bundle, const Options& options, const char* graph,
                          const DeviceOptions& device);

 private:
  std::mutex mutex_;
  std::unique_ptr<const GraphSession> session_;
};

// A library and what it runs graphs on, in words.
std::string describe(const Library& library, Device device);

class OnnxRuntimeVision : public VisionEngine {
 public:
  // `bundle` must outlive it.
  OnnxRuntimeVision(const Bundle& bundle, const Library& library, ImageGraphs graphs)
      : bundle_(bundle), library_(library), graphs_(std::move(graphs)) {}

  std::string description() const override { return describe(library_, graphs_.device.device); }
  std::string note() const override { return graphs_.note; }
  // As ImageGraphs has them.
  const std::string& products() const { return graphs_.products; }
  const Sizes& sizes() const override { return bundle_.contract.sizes; }
  std::vector<float> vision(const float* pixel_values, int64_t tiles) override;
  std::vector<float> projector(const std::vector<float>& vision_features, int64_t tiles) override;

 private:
  const Bundle& bundle_;
  const Library& library_;
  const ImageGraphs graphs_;
  LazySession vision_, projector_;
};

}  // namespace r1v::ort
