"""`r1v_llm`: a prompt and its image embeddings become an answer, token by token; many requests are decoded together."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from r1v_export.contract import IMAGE_EMBEDS, INPUT_IDS
from r1v_export.deploy.triton.models import python_backend as triton
from r1v_export.deploy.triton.models.answer_sender import AnswerSender, OpenAnswer
from r1v_export.deploy.triton.sampling_parameters import SamplingParameters
from r1v_export.deploy.triton.tensors import (
    SAMPLING_PARAMETERS,
    STOP,
    THINKING,
    TILES_PER_IMAGE,
)
from r1v_export.errors import InputError
from r1v_export.generation import EncodedImage, Sampling
from r1v_export.processing.generation_config import default_sampling
from r1v_export.runner.answer import Timings
from r1v_export.runner.batching.batching_runner import BatchingRunner
from r1v_export.runner.batching.options import MIB, BatchingOptions, BatchingStats
from r1v_export.runner.batching.stat_metrics import COUNTERS, GAUGES
from r1v_export.runner.batching.submission import Submission
from r1v_export.runner.encoded_prompt import EncodedPrompt
from r1v_export.runner.open_runner import open_runner
from r1v_export.strict import parse_json

METRICS_SECONDS = 0.5


class TritonPythonModel:
    """Decodes requests with our batching loop; a response has the tokens since the one before, and their text."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle's engine and start the loop."""
        model = triton.ModelArguments(args)
        # A library has the GPUs to itself, and what would encode images here is never asked.
        device = model.device if model.engine is None else "cpu"
        runner = open_runner(model.bundle, model.target, device=device, engine=model.engine, serving=True)
        options = BatchingOptions(
            max_rows=int(model.parameters[triton.MAX_ROWS]),
            cache_bytes=int(model.parameters[triton.CACHE_MIB]) * MIB,
            image_cache_bytes=0,
        )
        self.image_token_id, self.tokens_per_tile = runner.pipeline.image_token_id, runner.pipeline.tokens_per_tile
        self.default = replace(default_sampling(runner.generation_config), seed=None)
        self.batching = BatchingRunner(runner, options)
        self.metrics = _Metrics(self.batching.counted)
        self.sender = AnswerSender(self._count)
        self._lock = threading.Lock()
        self._running: dict[str, Submission] = {}

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin to answer each request, or end the one with the same id; responses come from a thread of their own."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                if triton.flag_input(request, STOP, default=False):
                    self._stop(request.request_id())
                    sender.send(flags=triton.FINAL)
                else:
                    self._begin(request, sender)
            except Exception as error:
                sender.send(triton.error_response(error), flags=triton.FINAL)

    def finalize(self) -> None:
        """End the loop; unfinished answers end as cancelled."""
        self.batching.close(drain=False)
        self.sender.close()

    def _begin(self, request: Any, sender: Any) -> None:
        answer = OpenAnswer(sender, self.sender)
        request_id = request.request_id()
        prompt, sampling = self._prompt(request), self._sampling(request)
        submission = self.batching.submit(prompt, sampling, deliver=answer.deliver, request_id=request_id or None)
        answer.cancel = submission.cancel
        with self._lock:
            self._running = {name: other for name, other in self._running.items() if not other.done}
            if request_id:
                self._running[request_id] = submission

    def _count(self, ended: bool) -> None:
        """Show the loop's counters at the end of each request, and now and then while it runs."""
        if ended or self.metrics.due:
            self.metrics.show(self.batching.stats())

    def _stop(self, request_id: str) -> None:
        with self._lock:
            submission = self._running.pop(request_id, None)
        if submission is not None:
            submission.cancel()

    def _prompt(self, request: Any) -> EncodedPrompt:
        ids = triton.array_input(request, INPUT_IDS)
        if ids is None or ids.size == 0:
            raise InputError("The request has no prompt.", where=INPUT_IDS, expected="at least one token")
        # Omitted, the prompt is a text that is continued as it is, which has no reasoning.
        given = triton.array_input(request, THINKING)
        thinking = None if given is None else bool(given.reshape(-1)[0])
        return EncodedPrompt([int(id_) for id_ in ids.reshape(-1)], self._images(request), thinking, Timings())

    def _images(self, request: Any) -> list[EncodedImage]:
        """The embeddings of each image, which are known by their own bytes."""
        embeds, tiles = triton.array_input(request, IMAGE_EMBEDS), triton.array_input(request, TILES_PER_IMAGE)
        if embeds is None or tiles is None or len(embeds) == 0:
            return []
        if (tiles < 1).any() or tiles.sum() != len(embeds):
            raise InputError(
                "The tiles of the images are not those of the embeddings.",
                where=TILES_PER_IMAGE,
                expected=f"positive numbers whose sum is {len(embeds)}",
                found=tiles.tolist(),
            )
        if not np.isfinite(embeds).all():
            raise InputError("Image embeddings are not finite.", where=IMAGE_EMBEDS, expected="finite numbers")
        ends = np.cumsum([0, *tiles.reshape(-1)])
        return [EncodedImage.of(embeds[start:end], embeds[start:end]) for start, end in pairwise(ends)]

    def _sampling(self, request: Any) -> Sampling:
        text = triton.text_input(request, SAMPLING_PARAMETERS)
        if text is None:
            return self.default
        options = parse_json(SamplingParameters, text, InputError, f"{SAMPLING_PARAMETERS} cannot be used")
        return replace(self.default, **options.changes)


class _Metrics:
    """The loop's counters among Triton's own metrics. Setting one is a message to the server's process."""

    def __init__(self, counted: Collection[str]) -> None:
        family, gauge = triton.backend().MetricFamily, triton.backend().MetricFamily.GAUGE
        self._shows = [metric for metric in (*GAUGES, *COUNTERS) if metric.field in counted]
        self._families = [family(name=each.name, description=each.text, kind=gauge) for each in self._shows]
        self._metrics = [each.Metric(labels={}) for each in self._families]
        self._shown = float("-inf")

    def show(self, stats: BatchingStats) -> None:
        """Set them to what the loop says."""
        self._shown = time.monotonic()
        for metric, exported in zip(self._shows, self._metrics, strict=True):
            exported.set(getattr(stats, metric.field))

    @property
    def due(self) -> bool:
        """Whether they are older than `METRICS_SECONDS`."""
        return time.monotonic() - self._shown >= METRICS_SECONDS
