// The loop's counters among the server's own metrics: r1v_export/runner/batching/stat_metrics.py has the same names.
#pragma once

#include <vector>

#include "runner/batching/options.h"
#include "triton/triton_api.h"

namespace r1v::triton {

// What the metrics are, once for all models: the server deletes a family for every object that has its name.
class MetricFamilies {
 public:
  // There are none where the server has its metrics turned off.
  MetricFamilies();
  ~MetricFamilies();
  MetricFamilies(const MetricFamilies&) = delete;
  MetricFamilies& operator=(const MetricFamilies&) = delete;

  const std::vector<TRITONSERVER_MetricFamily*>& all() const { return families_; }

 private:
  std::vector<TRITONSERVER_MetricFamily*> families_;
};

// Those of one model, which they are labelled with.
class Metrics {
 public:
  // `families` must outlive them.
  Metrics(const MetricFamilies& families, const char* model);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void show(const BatchingStats& stats);

 private:
  std::vector<TRITONSERVER_Metric*> metrics_;
};

}  // namespace r1v::triton
