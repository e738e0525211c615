"""A streamed comparison holds one block at a time and decodes as a runner does."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from r1v_export.parity import CheckOptions, Endpoint, ParityReport, ParitySample
from r1v_export.parity.endpoints import BlockwiseEndpoint
from r1v_export.parity.report import to_html
from r1v_export.parity.streamed import StreamedGate, check_streamed
from r1v_export.parity.texts import score_texts_by_blocks
from r1v_export.quantization.apply.blockwise import reference_blocks
from r1v_export.quantization.calibration.dataset import CalibrationSample
from r1v_export.reference.blockwise import TorchBlocks
from tests.tiny_models import checkpoint_of

if TYPE_CHECKING:
    from r1v_export.contract import OpenCache, RunWithCache


@pytest.fixture
def endpoint(reference: Endpoint) -> BlockwiseEndpoint:
    blocks = reference_blocks(checkpoint_of(reference.engine.model))
    return BlockwiseEndpoint(blocks, reference.tokenizer, reference.pipeline)


def compare(endpoint: BlockwiseEndpoint, samples: list[ParitySample], work: Path) -> ParityReport:
    """An engine with itself."""
    (report,) = check_streamed(
        [StreamedGate(endpoint, CheckOptions("fp32", max_new_tokens=4))], endpoint, samples, work
    )
    return report


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happens: a block is opened, by its name, or free memory is released. Every block but the embedding table,
    which is a map of its file, has to be gone when the next one is opened."""
    events: list[str] = []
    held: list[weakref.ref[Any]] = []
    with monkeypatch.context() as patch:
        fill = TorchBlocks._open

        def open_block(blocks: TorchBlocks, build: Any, prefix: str) -> Any:
            assert [block for block in held if block() is not None] == [], f"held while {prefix} is opened"
            compute = fill(blocks, build, prefix)
            if prefix != "language_model.model.":
                held.append(weakref.ref(compute))
            events.append(prefix)
            return compute

        patch.setattr(TorchBlocks, "_open", open_block)
        patch.setattr("r1v_export.memory.release_free_memory", lambda: events.append("released"))
        yield events


def test_a_block_is_given_back_before_the_next_one_is_opened(
    endpoint: BlockwiseEndpoint, samples: list[ParitySample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as events:
        compare(endpoint, samples[:1], tmp_path)
    assert_released(events, engines=2)


@pytest.mark.parametrize("share", [None, 0.9])
def test_progress_takes_tower_and_decoder_by_their_shares_of_the_time(
    endpoint: BlockwiseEndpoint, samples: list[ParitySample], tmp_path: Path, share: float | None
) -> None:
    reported: list[float] = []
    check_streamed(
        [StreamedGate(endpoint, CheckOptions("fp32", max_new_tokens=4))],
        endpoint,
        samples[:1],
        tmp_path,
        lambda done, total, status="": reported.append(done / total),
        tower_share=share,
    )
    in_tower, in_decoder = 2 * (endpoint.engine.vision_layers + 3), 2 * (endpoint.engine.sizes.layers + 1)
    assert len(reported) == in_tower + in_decoder
    assert reported[in_tower - 1] == pytest.approx(in_tower / (in_tower + in_decoder) if share is None else share)
    assert reported == sorted(reported)
    assert reported[-1] == pytest.approx(1.0)


def test_scoring_texts_holds_one_block_too(
    endpoint: BlockwiseEndpoint, samples: list[ParitySample], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = endpoint.inputs(samples[0])
    ids = (*inputs.input_ids.tolist(), 5, 6, 7)
    text = CalibrationSample(0, "text", "", ids, len(inputs.input_ids), 1, lambda: inputs.pixel_values)
    with watched(monkeypatch) as events:
        assert score_texts_by_blocks(endpoint.engine, [text]) is not None
    assert_released(events, engines=1)


def test_replies_are_decoded_in_one_walk_with_the_cache_in_place(
    endpoint: BlockwiseEndpoint, samples: list[ParitySample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference's too: an engine that computes the same, in the same steps, differs in no bit."""
    walked: list[tuple[int, list[tuple[int, int]]]] = []
    open_layer = TorchBlocks.decoder_layer

    def decoder_layer(blocks: TorchBlocks, layer: int) -> OpenCache:
        open_cache = open_layer(blocks, layer)

        def spied(capacity: int) -> RunWithCache:
            run, steps = open_cache(capacity), list[tuple[int, int]]()
            walked.append((layer, steps))

            def step(hidden_1SE: np.ndarray, start: int) -> np.ndarray:
                steps.append((start, hidden_1SE.shape[1]))
                return run(hidden_1SE, start)

            return step

        return spied

    monkeypatch.setattr(TorchBlocks, "decoder_layer", decoder_layer)
    report = compare(endpoint, samples[:1], tmp_path)
    prompt = len(endpoint.inputs(samples[0]).input_ids)
    steps = [(0, prompt), *((prompt + token, 1) for token in range(4))]
    assert walked == [(layer, steps) for layer in range(3) for _ in ("reference", "candidate")]
    assert [step.step for step in report.decode_steps] == [1, 2, 3, 4]
    assert report.boundary("decode").metrics["max_abs_error"] == 0


def test_the_page_says_that_a_given_reply_was_decoded_and_where_it_ends(
    endpoint: BlockwiseEndpoint, samples: list[ParitySample], tmp_path: Path
) -> None:
    report = compare(endpoint, samples[:1], tmp_path)
    assert report.boundary("decode").compared == "logits of every later token, fed with a given reply"
    page = to_html(report)
    assert "own answer" not in page
    assert "A reply ends after 4 tokens at the latest." in page


def assert_released(events: list[str], engines: int) -> None:
    """Free memory was released before every block with weights of its own was opened, and again before it computed."""
    opened = [(before, name) for before, name in zip(["", *events], events, strict=False) if name != "released"]
    behind = dict(itertools.pairwise(events))
    assert {behind[name] for name in behind if name not in ("released", "language_model.model.")} == {"released"}
    blocks = [name for _, name in opened if name != "language_model.model."]
    layers = [f"language_model.model.layers.{layer}." for layer in range(3)]
    assert [name for name in blocks if name in layers] == [name for name in layers for _ in range(engines)]
    assert {before for before, name in opened if name in blocks} == {"released"}
