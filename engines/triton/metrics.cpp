#include "triton/metrics.h"

#include <memory>

#include "triton/status.h"

namespace r1v::triton {
namespace {

struct StatMetric {
  const char* name;
  const char* text;
  int64_t BatchingStats::*field;
};

constexpr StatMetric kMetrics[] = {
    {"r1v_requests_queued", "Requests that wait for a row of the cache.", &BatchingStats::queued},
    {"r1v_requests_running", "Requests that are being answered.", &BatchingStats::running},
    {"r1v_cache_rows", "Rows of the key-value cache.", &BatchingStats::rows},
    {"r1v_cache_rows_kept", "Rows kept for their prefixes.", &BatchingStats::kept_rows},
    {"r1v_cache_bytes", "Size of the key-value cache.", &BatchingStats::cache_bytes},
    {"r1v_requests_refused", "Requests that met a full queue.", &BatchingStats::refused},
    {"r1v_prompt_tokens", "Tokens of prompts.", &BatchingStats::prompt_tokens},
    {"r1v_prompt_tokens_reused", "Tokens of prompts that the cache held.", &BatchingStats::reused_tokens},
    {"r1v_generated_tokens", "Tokens of answers.", &BatchingStats::generated_tokens},
    {"r1v_prefix_hits", "Requests that began behind a kept prefix.", &BatchingStats::prefix_hits},
    {"r1v_prefix_misses", "Requests that found no kept prefix.", &BatchingStats::prefix_misses},
    {"r1v_preemptions", "Times that a request gave up its row for an older one.", &BatchingStats::preempted},
    {"r1v_image_cache_hits", "Images whose embeddings were kept.", &BatchingStats::image_hits},
    {"r1v_image_cache_misses", "Images that were encoded.", &BatchingStats::image_misses},
};

}  // namespace

MetricFamilies::MetricFamilies() {
  for (const StatMetric& each : kMetrics) {
    TRITONSERVER_MetricFamily* family = nullptr;
    TRITONSERVER_Error* failed =
        TRITONSERVER_MetricFamilyNew(&family, TRITONSERVER_METRIC_KIND_GAUGE, each.name, each.text);
    log_failed(failed, "no metrics of r1v");
    if (family == nullptr) return;
    families_.push_back(family);
  }
}

MetricFamilies::~MetricFamilies() {
  for (TRITONSERVER_MetricFamily* family : families_)
    log_failed(TRITONSERVER_MetricFamilyDelete(family), "a family of metrics was not deleted");
}

Metrics::Metrics(const MetricFamilies& families, const char* model) {
  const std::unique_ptr<TRITONSERVER_Parameter, decltype(&TRITONSERVER_ParameterDelete)> label(
      TRITONSERVER_ParameterNew("model", TRITONSERVER_PARAMETER_STRING, model), TRITONSERVER_ParameterDelete);
  const TRITONSERVER_Parameter* labels[] = {label.get()};
  for (TRITONSERVER_MetricFamily* family : families.all()) {
    TRITONSERVER_Metric* metric = nullptr;
    TRITONSERVER_Error* failed = TRITONSERVER_MetricNew(&metric, family, labels, 1);
    log_failed(failed, "no metrics of r1v");
    if (metric == nullptr) return;
    metrics_.push_back(metric);
  }
}

Metrics::~Metrics() {
  for (TRITONSERVER_Metric* metric : metrics_)
    log_failed(TRITONSERVER_MetricDelete(metric), "a metric was not deleted");
}

void Metrics::show(const BatchingStats& stats) {
  for (size_t i = 0; i < metrics_.size(); ++i) {
    const auto value = static_cast<double>(stats.*kMetrics[i].field);
    log_failed(TRITONSERVER_MetricSet(metrics_[i], value), "a metric was not set");
  }
}

}  // namespace r1v::triton
