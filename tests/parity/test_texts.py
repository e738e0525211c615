"""An imported quantized checkpoint is rated on texts: values that both endpoints read incorrectly show there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.quantized import gptq
from r1v_export.checkpoint.synth import synthesize
from r1v_export.errors import ParityError
from r1v_export.parity.schema import FEWEST_TEXT_TOKENS, TextFacts
from r1v_export.parity.texts import fewest_texts, score_texts, score_texts_by_blocks
from r1v_export.pipeline.parity_gate import reference_endpoint, texts
from r1v_export.quantization.apply.blockwise import reference_blocks
from r1v_export.reference.blockwise import TorchBlocks
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.reference.model import load
from tests.quantized_checkpoints import GPTQ, pack_gptq, quantized_copy

NANO = Path(r1v_export.__file__).parent / "nano" / "model"


@pytest.fixture(scope="module")
def quantized_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """r1v-nano rounded to 4 bits with zero points, in AutoGPTQ's layout."""
    folder = tmp_path_factory.mktemp("texts") / "nano-gptq"
    quantized_copy(NANO, folder, pack_gptq, GPTQ, rounded=True)
    return folder


def scored(checkpoint: Checkpoint, choose: Callable[[Sequence[Any]], Sequence[Any]] = list) -> TextFacts:
    facts = score_texts(reference_endpoint(checkpoint, "cpu"), choose(texts(checkpoint)))
    assert facts is not None
    return facts


def read_with_offset(folder: Path, offset: int) -> Checkpoint:
    """The checkpoint with its zero points read by another convention than its quantized values show."""
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.quantized is not None
    other = replace(checkpoint.quantized.format, zero_offset=offset)
    linears = {
        name: replace(linear, layout=other.layout(name, linear.shape[1]))
        for name, linear in checkpoint.quantized.linears.items()
    }
    checkpoint.quantized = replace(checkpoint.quantized, linears=linears)
    return checkpoint


def test_the_likelihood_is_the_same_a_block_at_a_time(quantized_nano):
    checkpoint = Checkpoint.open(quantized_nano)
    samples = texts(checkpoint)[:3]
    expected = score_texts(reference_endpoint(checkpoint, "cpu"), samples)
    found = score_texts_by_blocks(reference_blocks(checkpoint), samples)
    assert expected is not None
    assert found is not None
    assert found.nll == pytest.approx(expected.nll, rel=1e-4)
    assert found.prediction_entropy == pytest.approx(expected.prediction_entropy, rel=1e-4)
    assert (found.texts, found.tokens, found.unigram_nll) == (expected.texts, expected.tokens, expected.unigram_nll)
    assert score_texts_by_blocks(reference_blocks(checkpoint), ()) is None


def test_a_reply_is_rated_a_few_rows_at_a_time(quantized_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to a head of gigabytes, float64 arrays of the vocabulary for a whole reply were gigabytes too."""
    checkpoint = Checkpoint.open(quantized_nano)
    samples, rows = texts(checkpoint)[:3], list[int]()
    expected = score_texts_by_blocks(reference_blocks(checkpoint), samples)
    open_head = TorchBlocks.head

    def head(blocks: TorchBlocks) -> Callable[[np.ndarray], np.ndarray]:
        run = open_head(blocks)

        def counted(hidden_RE: np.ndarray) -> np.ndarray:
            rows.append(len(hidden_RE))
            return run(hidden_RE)

        return counted

    monkeypatch.setattr(TorchBlocks, "head", head)
    monkeypatch.setattr("r1v_export.parity.texts.ROWS_AT_ONCE", 2)
    found = score_texts_by_blocks(reference_blocks(checkpoint), samples)
    assert expected is not None
    assert found is not None
    assert set(rows) <= {1, 2}
    assert sum(rows) == found.tokens == expected.tokens
    assert found.nll == pytest.approx(expected.nll, rel=1e-6)


def test_the_likelihood_is_that_of_the_whole_sequence_at_once(quantized_nano):
    checkpoint = Checkpoint.open(quantized_nano)
    samples = texts(checkpoint)[:3]
    model, total, count = load(checkpoint), 0.0, 0
    for sample in samples:
        ids = torch.tensor(sample.token_ids)
        with torch.no_grad():
            images = model.image_embeds(torch.from_numpy(sample.pixels())).flatten(0, 1)
            embeds = model.embed(ids[None], images)
            positions = torch.arange(len(ids))[None]
            step = CacheStep(positions, torch.zeros(1, dtype=torch.int64), torch.tensor([len(ids)]))
            rotary = rotary_tables(checkpoint.spec.language, len(ids))
            logits, _ = model.language_model(embeds, rotary, step, None)
        start = sample.prompt_tokens
        total += float(F.cross_entropy(logits[0, start - 1 : -1], ids[start:], reduction="sum"))
        count += len(ids) - start
    facts = score_texts(reference_endpoint(checkpoint, "cpu"), samples)
    assert facts is not None
    assert facts.tokens == count
    assert facts.nll == pytest.approx(total / count, rel=1e-3, abs=1e-5)
    replies = np.array([token for sample in samples for token in sample.token_ids[sample.prompt_tokens :]])
    share = np.unique(replies, return_counts=True)[1] / len(replies)
    assert facts.unigram_nll == pytest.approx(-(share * np.log(share)).sum(), rel=1e-5)


def test_a_right_reading_passes_by_far(quantized_nano):
    facts = scored(Checkpoint.open(quantized_nano))
    assert facts.passed
    assert facts.not_gated is None
    assert facts.nll < facts.unigram_nll / 10


def test_the_fewest_texts_have_one_tile_each_and_as_many_tokens_as_the_limit_needs(quantized_nano):
    chosen = fewest_texts(texts(Checkpoint.open(quantized_nano)))
    tokens = [len(text.token_ids) - text.prompt_tokens for text in chosen]
    assert sum(tokens[:-1]) < FEWEST_TEXT_TOKENS <= sum(tokens)
    assert [len(text.pixels()) for text in chosen] == [1] * len(chosen)
    assert fewest_texts(()) == []


def test_the_fewest_texts_pass_by_far_as_well(quantized_nano):
    facts = scored(Checkpoint.open(quantized_nano), fewest_texts)
    assert facts.not_gated is None
    assert facts.nll < facts.unigram_nll / 10


@pytest.mark.parametrize("choose", [list, fewest_texts])
@pytest.mark.parametrize("offset", [0, 2])
def test_zero_points_one_step_off_fail(quantized_nano, offset, choose):
    facts = scored(read_with_offset(quantized_nano, offset), choose)
    assert not facts.passed
    with pytest.raises(ParityError, match="does not model text") as raised:
        raise facts.error()
    assert "checkpoint_format" in raised.value.fix


def test_quantized_values_in_the_wrong_order_fail(quantized_nano, monkeypatch):
    checkpoint = Checkpoint.open(quantized_nano)
    monkeypatch.setitem(gptq.ORDERS, 4, (1, 0, 3, 2, 5, 4, 7, 6))
    assert not scored(checkpoint).passed


def test_a_trained_model_with_random_quantized_values_fails(tmp_path):
    quantized_copy(NANO, tmp_path / "model", pack_gptq, GPTQ)
    assert not scored(Checkpoint.open(tmp_path / "model")).passed


def test_a_model_without_training_is_not_gated_and_says_why(tmp_path):
    synthesize(tmp_path / "random", preset="nano", vision_layers=1, language_layers=2)
    quantized_copy(tmp_path / "random", tmp_path / "model", pack_gptq, GPTQ)
    facts = scored(Checkpoint.open(tmp_path / "model"))
    assert facts.passed
    assert "uniform" in facts.not_gated


def test_a_checkpoint_that_is_not_quantized_is_not_rated_on_texts():
    checkpoint = Checkpoint.open(NANO)
    assert texts(checkpoint) == ()
    assert score_texts(reference_endpoint(checkpoint, "cpu"), ()) is None
