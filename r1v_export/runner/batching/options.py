"""Limits of a batching runner, and what it has counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from r1v_export.errors import UsageError
from r1v_export.generation import FinishReason
from r1v_export.runner.batching.speculation import DRAFT_TOKENS

MIB = 1 << 20


@dataclass(frozen=True)
class BatchingOptions:
    """How much a batching runner takes at a time.

    Args:
        max_rows: requests that are decoded together; at least 1.
        max_queued: requests that wait for a row; one more is refused with `QueueFullError`.
        cache_bytes: of the key-value cache: its rows times the slots of each.
        image_cache_bytes: of image embeddings that are kept for images shown again; 0 keeps none.
        keep_prefixes: keep the caches of finished requests while there is room, and start a request that begins with
            the same tokens and images behind what it has in common with them.
        prefill_chunk: prompt tokens that are prefilled between two decoder steps, at most. Fewer let answers on their
            way wait less for others' prompts, at the cost of throughput and of the time to the first token. None for
            what the engine says, see `PrefillLimits`.
        draft_tokens: tokens of an answer that are guessed and checked in one step, at most, as `batching.speculation`
            has it; 0 decodes token by token.
    """

    max_rows: int = 16
    max_queued: int = 256
    cache_bytes: int = 2048 * MIB
    image_cache_bytes: int = 256 * MIB
    keep_prefixes: bool = True
    prefill_chunk: int | None = None
    draft_tokens: int = DRAFT_TOKENS

    def __post_init__(self) -> None:
        least_of = dict.fromkeys(("max_rows", "max_queued", "cache_bytes"), 1)
        least_of |= {"image_cache_bytes": 0, "draft_tokens": 0}
        if self.prefill_chunk is not None:
            least_of["prefill_chunk"] = 1
        for name, least in least_of.items():
            found = getattr(self, name)
            if found < least:
                fix = f"choose a larger {name}, or omit it"
                raise UsageError(f"{name} is out of range.", expected=f"at least {least}", found=found, fix=fix)


@dataclass(frozen=True)
class BatchingStats:
    """A batching runner at one moment. What is not said to be of now is counted since it was opened.

    Attributes:
        queued: requests without a row now: their images are being encoded, or they wait.
        running: requests with a row now.
        rows: rows that the key-value cache has now; `max_rows` of the options at most.
        kept_rows: of these, rows of finished requests that are kept now for their prefixes.
        cache_bytes: taken now by the key-value cache.
        cache_budget_bytes: of the options.
        refused: requests that met a full queue.
        finished: answers by finish reason.
        errors: requests that ended in an error, by the error's class name.
        prompt_tokens: of all prompts that were given a row.
        reused_tokens: of these, taken from the cache of another request.
        generated_tokens: of all answers, unfinished ones included.
        preempted: times that a request gave up its row for an older one, and was computed again.
        draft_tokens: tokens that were guessed and checked.
        accepted_tokens: of these, tokens that were right.
        prefix_hits, prefix_misses: requests that found a common prefix, and that found none.
        image_cache_hits, image_cache_misses: images whose embeddings were kept, and that were encoded.
        image_cache_bytes: taken now by kept embeddings.
        image_cache_budget_bytes: of the options.
        rows_per_step: rows decoded together -> how many decoder steps had so many.
        tiles_per_vision_batch: tiles encoded together -> how many runs of the vision graph had so many.
    """

    queued: int = 0
    running: int = 0
    rows: int = 0
    kept_rows: int = 0
    cache_bytes: int = 0
    cache_budget_bytes: int = 0
    refused: int = 0
    finished: Mapping[FinishReason, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    preempted: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    image_cache_hits: int = 0
    image_cache_misses: int = 0
    image_cache_bytes: int = 0
    image_cache_budget_bytes: int = 0
    rows_per_step: Mapping[int, int] = field(default_factory=dict)
    tiles_per_vision_batch: Mapping[int, int] = field(default_factory=dict)
