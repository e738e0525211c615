"""Prompts by OpenVINO, in float32, in front of ONNX Runtime's decoder: as PyTorch computes them."""

from __future__ import annotations

import numpy as np
import pytest

from r1v_export import contract
from r1v_export.contract import DECODER
from r1v_export.runner import prompted_engine
from r1v_export.runner.kv_cache import KVCache
from r1v_export.runner.prompted_engine import PromptedEngine
from r1v_export.targets.openvino.config import OpenVinoConfig
from r1v_export.targets.openvino.engine_file import read_engine_file
from r1v_export.targets.openvino.write.graphs import write_graphs
from tests.targets.onnxruntime.runtime.test_engine import assert_close, moving_rows, normal, prompts, walk
from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = NEEDS_OPENVINO


class Counting:
    """A `contract.PromptEngine` that counts the tokens it is given."""

    def __init__(self, prompts) -> None:
        self.prompts, self.tokens = prompts, 0

    def fill(self, inputs_embeds, start, cache) -> None:
        self.tokens += len(inputs_embeds)
        self.prompts.fill(inputs_embeds, start, cache)


@pytest.fixture
def paired(built, tmp_path, monkeypatch):
    """The engine of ONNX Runtime with its prompts by OpenVINO, from two tokens on, and what counts those."""
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    monkeypatch.setattr(prompted_engine, "LEAST_TOKENS", 2)
    write_graphs(built.graphs, [DECODER], OpenVinoConfig(matmul="float32"), tmp_path, logits=False)
    counting = Counting(OpenVinoEngine(tmp_path, built.folder, built.spec.sizes).prompts())
    return PromptedEngine(built.open(), lambda: counting, "both"), counting


def test_the_head_is_not_held(built, tmp_path):
    write_graphs(built.graphs, [DECODER], OpenVinoConfig(matmul="float32"), tmp_path, logits=False)
    write_graphs(built.graphs, [DECODER], OpenVinoConfig(matmul="float32"), tmp_path / "..", logits=True)
    without, whole = (read_engine_file(folder).weights[DECODER] for folder in (tmp_path, tmp_path / ".."))
    sizes = built.spec.sizes
    head_bytes = sizes.hidden * sizes.vocab * 4
    assert sum(each.size_bytes for each in whole.values()) - sum(each.size_bytes for each in without.values()) > (
        head_bytes
    )


@pytest.mark.parametrize("lengths", [[12], [12, 3, 7], [1, 9]])
def test_ragged_batches_follow_the_reference(built, paired, lengths):
    engine, counting = paired
    prompts_SE = prompts(built.spec, lengths)
    steps = [normal(len(lengths), 1, built.spec.language.hidden_size) for _ in range(6)]
    ours = walk(engine, prompts_SE, steps)
    for found, wanted in zip(ours, walk(built.reference, prompts_SE, steps), strict=True):
        assert_close(found, wanted)
    ends = [length - 1 for length in lengths if length > 2]
    ends += [1 + row for row, length in enumerate(lengths) if min(length, 2 + row) > 2]
    assert counting.tokens == sum(ends)


@pytest.mark.parametrize("at_once", [512, 3])
def test_however_prompts_are_cut_the_numbers_stay(built, paired, monkeypatch, at_once):
    monkeypatch.setattr("r1v_export.targets.openvino.runtime.prompts.TOKENS_AT_ONCE", at_once)
    prompt_SE, results = normal(40, built.spec.language.hidden_size), []
    for engine in (paired[0], built.reference):
        for cuts in ([40], [16, 8, 16], [1, 30, 9]):
            cache, start = KVCache(engine.decoder(2, 48)), 0
            for count in cuts:
                logits = cache.append(prompt_SE[None, start : start + count], np.array([count]), 1)
                start += count
            results.append(logits)
    for found, wanted in zip(results[:3], results[3:], strict=True):
        assert_close(found, wanted)


def test_rows_that_move_hold_what_the_references_do(built, paired):
    prompts_SE, token = prompts(built.spec, [7, 5, 6]), normal(1, 1, built.spec.language.hidden_size)
    expected = moving_rows(built.reference, prompts_SE, token)
    for found, wanted in zip(moving_rows(paired[0], prompts_SE, token), expected, strict=True):
        assert_close(found, wanted)
    assert paired[1].tokens == 5 + 3 + 4


def test_tokens_with_logits_are_the_decoders(built, paired):
    """As drafts are checked: no token in front of the first logits is left over."""
    hidden, start = built.spec.language.hidden_size, np.zeros(1, np.int64)
    tokens, places = normal(1, 9, hidden), np.arange(9)[None]
    expected, found = (engine.decoder(1, 16) for engine in (built.reference, paired[0]))
    for index in ([[4, 6, 8]], [[0, 3, 8]]):
        arguments = tokens, places, start, start + 9, np.array(index)
        assert_close(found.step(*arguments), expected.step(*arguments))
    assert paired[1].tokens == 4


def test_errors_of_openvino_name_the_graph(built, paired):
    from r1v_export.errors import GraphError

    decoder = paired[0].decoder(1, 16)
    wrong = normal(1, 9, built.spec.language.hidden_size + 1)
    start = np.zeros(1, np.int64)
    with pytest.raises(GraphError, match=contract.DECODER):
        decoder.step(wrong, np.arange(9)[None], start, start + 9, np.array([[8]]))
