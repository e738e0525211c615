"""Time per stage, measured by an engine that wraps another and passes everything through."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from r1v_export.contract import CacheLimits, Decoder, Engine
from r1v_export.parity.schema import Latency

UNITS = {"vision": "tile", "projector": "tile", "embed": "token", "prefill": "token", "decode": "step"}
"""Stage -> what one time is for."""


@dataclass
class Stopwatch:
    """Seconds and units by stage. A stage's first call is not counted: engines allocate and choose kernels in it."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    units: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _started: set[str] = field(default_factory=set)

    def call(self, stage: str, units: int, function: Callable[..., np.ndarray], *args: Any) -> np.ndarray:
        """Call a function and add its time and units to the stage; a stage's first call is warm-up and is not
        counted."""
        begin = time.perf_counter()
        result = function(*args)
        elapsed = time.perf_counter() - begin
        if stage in self._started:
            self.seconds[stage] += elapsed
            self.units[stage] += units
        self._started.add(stage)
        return result

    def mean_ms(self, stage: str) -> float | None:
        """Mean milliseconds per unit; None where the stage ran at most once."""
        return 1000 * self.seconds[stage] / self.units[stage] if self.units[stage] else None


class TimedEngine:
    """A `contract.Engine` that keeps time."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.sizes = engine, engine.name, engine.sizes
        self.stopwatch = Stopwatch()

    def vision(self, pixel_values: np.ndarray) -> np.ndarray:
        return self.stopwatch.call("vision", len(pixel_values), self.engine.vision, pixel_values)

    def projector(self, vision_features: np.ndarray) -> np.ndarray:
        return self.stopwatch.call("projector", len(vision_features), self.engine.projector, vision_features)

    def embed(self, input_ids: np.ndarray, image_embeds: np.ndarray) -> np.ndarray:
        return self.stopwatch.call("embed", input_ids.size, self.engine.embed, input_ids, image_embeds)

    def decoder(self, batch: int, capacity: int) -> TimedDecoder:
        return TimedDecoder(self.engine.decoder(batch, capacity), self.stopwatch)

    def cache_limits(self) -> CacheLimits:
        return self.engine.cache_limits()

    def __getattr__(self, name: str) -> Any:
        """Whatever else the engine offers, such as `vision_blocks`, untimed."""
        return getattr(self.engine, name)


class TimedDecoder:
    """A `contract.Decoder` that keeps time: several new tokens per row are prefill, one is a decode step."""

    def __init__(self, decoder: Decoder, stopwatch: Stopwatch) -> None:
        self.decoder, self.stopwatch = decoder, stopwatch
        self.batch, self.capacity = decoder.batch, decoder.capacity

    def step(
        self,
        inputs_embeds: np.ndarray,
        position_ids: np.ndarray,
        cache_write_index: np.ndarray,
        cache_length: np.ndarray,
        logits_index: np.ndarray,
        first_row: int = 0,
    ) -> np.ndarray:
        batch, seq = inputs_embeds.shape[:2]
        stage, units = ("prefill", batch * seq) if seq > 1 else ("decode", 1)
        where = position_ids, cache_write_index, cache_length, logits_index, first_row
        return self.stopwatch.call(stage, units, self.decoder.step, inputs_embeds, *where)

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.decoder.copy_row(source, target, length)

    def swap_rows(self, a: int, b: int, length: int) -> None:
        self.decoder.swap_rows(a, b, length)

    def resize(self, batch: int, capacity: int, lengths: np.ndarray) -> None:
        self.decoder.resize(batch, capacity, lengths)
        self.batch, self.capacity = batch, capacity


def latencies(reference: TimedEngine, candidate: TimedEngine) -> tuple[Latency, ...]:
    """Every stage that both have run more than once, in data-flow order."""
    rows = ((s, unit, reference.stopwatch.mean_ms(s), candidate.stopwatch.mean_ms(s)) for s, unit in UNITS.items())
    return tuple(
        Latency(stage=stage, unit=unit, reference_ms=expected, candidate_ms=found)
        for stage, unit, expected, found in rows
        if expected is not None and found is not None
    )
