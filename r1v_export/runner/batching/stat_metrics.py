"""A batching runner's counters as metrics, named once: the server and Triton's model export the same."""

from __future__ import annotations

from typing import NamedTuple


class StatMetric(NamedTuple):
    """One number of `BatchingStats` as a metric.

    Attributes:
        name: of the metric, in Prometheus's style, a counter's without its `_total`.
        text: what it says.
        field: of `BatchingStats`.
    """

    name: str
    text: str
    field: str


GAUGES = (
    StatMetric("r1v_requests_queued", "Requests that wait for a row of the cache.", "queued"),
    StatMetric("r1v_requests_running", "Requests that are being answered.", "running"),
    StatMetric("r1v_cache_rows", "Rows of the key-value cache.", "rows"),
    StatMetric("r1v_cache_rows_kept", "Rows kept for their prefixes.", "kept_rows"),
    StatMetric("r1v_cache_bytes", "Size of the key-value cache.", "cache_bytes"),
    StatMetric("r1v_cache_budget_bytes", "Largest size of the key-value cache.", "cache_budget_bytes"),
    StatMetric("r1v_image_cache_bytes", "Size of the kept image embeddings.", "image_cache_bytes"),
)
COUNTERS = (
    StatMetric("r1v_requests_refused", "Requests that met a full queue.", "refused"),
    StatMetric("r1v_prompt_tokens", "Tokens of prompts.", "prompt_tokens"),
    StatMetric("r1v_prompt_tokens_reused", "Tokens of prompts that the cache held.", "reused_tokens"),
    StatMetric("r1v_generated_tokens", "Tokens of answers.", "generated_tokens"),
    StatMetric("r1v_prefix_hits", "Requests that began behind a kept prefix.", "prefix_hits"),
    StatMetric("r1v_prefix_misses", "Requests that found no kept prefix.", "prefix_misses"),
    StatMetric("r1v_draft_tokens", "Tokens that were guessed and checked in steps of several.", "draft_tokens"),
    StatMetric("r1v_accepted_tokens", "Of these, tokens that were right.", "accepted_tokens"),
    StatMetric("r1v_preemptions", "Times that a request gave up its row for an older one.", "preempted"),
    StatMetric("r1v_image_cache_hits", "Images whose embeddings were kept.", "image_cache_hits"),
    StatMetric("r1v_image_cache_misses", "Images that were encoded.", "image_cache_misses"),
)
