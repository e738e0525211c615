// A model of the server: a bundle's runner, whose loop decodes all requests together.
#pragma once

#include "runner/runner.h"
#include "triton/answer_sender.h"
#include "triton/metrics.h"
#include "triton/triton_api.h"

namespace r1v::triton {

class Model {
 public:
  // Opens the bundle that the model's parameters name. Throws what a Runner throws, and kUsage: a parameter is missing
  // or cannot be used.
  // `families` must outlive it.
  Model(TRITONBACKEND_Model* model, const MetricFamilies& families);
  // Ends all answers before what they use.
  ~Model() { sender_.close(); }

  // Begins to answer a request, and releases it; the responses come from a thread of their own.
  void answer(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) noexcept;

 private:
  void start(TRITONBACKEND_Request* request, const std::shared_ptr<OpenAnswer>& answer);

  Metrics metrics_;
  AnswerSender sender_;  // before the runner, whose threads give it the events
  Runner runner_;
  const Sampling default_sampling_;
};

}  // namespace r1v::triton
