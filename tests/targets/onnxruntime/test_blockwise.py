"""An engine of which one block is held at a time computes what the whole one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from r1v_export.contract import BlockwiseEngine, graph_contracts
from r1v_export.exporters import export
from r1v_export.exporters.trace import trace
from r1v_export.model_spec import ModelSpec
from r1v_export.reference import operators
from r1v_export.reference.language import LanguageModel
from r1v_export.runner.kv_cache import KVCache
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from tests.targets.conftest import Built, build
from tests.tiny_models import tiny_spec


def take_behind_the_last_layer(self, h_BSE, rotary, step, cache, logits_index_BP):
    """`LanguageModel.forward` as decoders of earlier versions have it."""
    present = []
    for layer, cached in zip(self.model.layers, cache, strict=True):
        h_BSE, updated = layer(h_BSE, rotary, step, cached)
        present.append(updated)
    return self.lm_head(self.model.norm(operators.take_tokens(h_BSE, logits_index_BP))), present


def trace_anew(name: str, spec: ModelSpec, compute: torch.dtype) -> ir.Model:
    """Not the one that tests share."""
    return trace(export.SOURCES[name](spec), graph_contracts(spec.sizes)[name], compute)


def blocks_of(built: Built) -> BlockwiseEngine:
    return OnnxRuntimeTarget().open_blocks(built.engine_folder, built.spec, "cpu")


def logits_by_blocks(blocks: BlockwiseEngine, pieces: list[np.ndarray]) -> np.ndarray:
    """Of every token of a sequence that goes in piece by piece."""
    start = 0
    layers = [blocks.decoder_layer(layer)(64) for layer in range(blocks.sizes.layers)]
    logits = []
    for hidden in pieces:
        seq = hidden.shape[1]
        for layer in layers:
            hidden = layer(hidden, start)
        assert hidden.shape[1] == seq, "the last layer, too, gives all tokens"
        logits.append(blocks.head()(hidden[0]))
        start += seq
    return np.concatenate(logits)


@pytest.mark.parametrize("of_an_earlier_version", [False, True])
def test_layer_by_layer_the_logits_are_those_of_the_whole_decoder(
    of_an_earlier_version: bool, r1v: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if of_an_earlier_version:
        monkeypatch.setattr(LanguageModel, "forward", take_behind_the_last_layer)
        monkeypatch.setattr(export, "trace_graph", trace_anew)
        r1v = build(tiny_spec(), tmp_path / "bundle", others=r1v)
    random, hidden = np.random.default_rng(0), r1v.spec.sizes.hidden
    pieces = [random.standard_normal((1, seq, hidden)).astype(np.float32) for seq in (5, 3)]
    cache = KVCache(r1v.open().decoder(1, 64))
    whole = np.concatenate([cache.append_scored(piece, np.array([piece.shape[1]]))[0] for piece in pieces])
    np.testing.assert_allclose(logits_by_blocks(blocks_of(r1v), pieces), whole, rtol=0, atol=1e-5)
    decoder = (r1v.engine_folder / "decoder.onnx").read_bytes()
    taken_in = b"language_model/GatherND" if of_an_earlier_version else b".self_attn/GatherND"
    assert taken_in in decoder
