"""The real thing: a built ONNX Runtime engine against PyTorch, whole and with damaged weight files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from r1v_export.config import BuildConfig
from r1v_export.contract import GRAPHS
from r1v_export.exporters.export import export_graph
from r1v_export.parity import CheckOptions, Endpoint, ParityReport, ParitySample, check
from r1v_export.parity.endpoints import BlockwiseEndpoint
from r1v_export.parity.streamed import StreamedGate, check_streamed
from r1v_export.quantization.apply.blockwise import reference_blocks
from r1v_export.reference.model import Model
from r1v_export.targets.interface import BuildInputs
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from tests.tiny_models import checkpoint_of

Change = Callable[[np.ndarray], object]


@pytest.fixture(scope="module")
def bundle(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as far as engines care. Not to be written to."""
    folder = tmp_path_factory.mktemp("bundle")
    graphs, engine = folder / "graphs", folder / "engines" / "onnxruntime"
    graphs.mkdir()
    engine.mkdir(parents=True)
    for name in GRAPHS:
        export_graph(name, checkpoint_of(model), graphs, torch.float32)
    inputs = BuildInputs(graphs, checkpoint_of(model), None, BuildConfig())
    OnnxRuntimeTarget().build(inputs, engine, lambda _: None)
    return folder


def candidate(reference: Endpoint, bundle: Path) -> Endpoint:
    engine = OnnxRuntimeTarget().open(bundle / "engines" / "onnxruntime", reference.engine.model.spec, "cpu")
    return replace(reference, engine=engine)


def compare(reference: Endpoint, bundle: Path, samples: list[ParitySample], **options) -> ParityReport:
    return check(reference, candidate(reference, bundle), samples, CheckOptions("fp32", max_new_tokens=12, **options))


def change_weight(bundle: Path, graph: str, initializer: str, change: Change) -> None:
    """Change some numbers of one weight in the bundle's data files, in place."""
    proto = onnx.load(bundle / "engines" / "onnxruntime" / f"{graph}.onnx", load_external_data=False)
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == initializer)
    where = {entry.key: entry.value for entry in tensor.external_data}
    shape, offset = tuple(tensor.dims), int(where["offset"])
    weight = np.memmap(bundle / where["location"], np.float32, mode="r+", offset=offset, shape=shape)
    change(weight)
    weight.flush()


def test_a_built_engine_passes_at_every_boundary(reference: Endpoint, bundle: Path, samples: list[ParitySample]):
    report = compare(reference, bundle, samples, blocks=True)
    report.raise_if_failed()
    assert report.boundary("tokens").metrics["token_agreement"] == 1.0
    # Other kernels than PyTorch's, so the comparison is not of a thing with itself.
    assert all(report.boundary(name).metrics["max_abs_error"] > 0 for name in ("vision_block.0", "vision", "prefill"))


def add_a_little(weight: np.ndarray) -> None:
    weight[..., 5] += 0.05


@pytest.mark.parametrize(
    ("graph", "initializer", "boundary"),
    [
        ("vision", "vision_model.encoder.layers.1.attn.qkv.weight.T", "vision_block.1"),
        ("vision", "vision_model.encoder.layers.2.ls1", "vision_block.2"),
        ("projector", "mlp1.3.bias", "projector"),
        ("embed", "language_model.model.embed_tokens.weight", "embeds"),
        ("decoder", "language_model.model.layers.2.mlp.down_proj.weight.T", "prefill"),
        ("decoder", "language_model.lm_head.weight.T", "prefill"),
    ],
)
def test_a_damaged_weight_file_is_caught_where_it_is(
    reference: Endpoint,
    bundle: Path,
    samples: list[ParitySample],
    tmp_path: Path,
    graph: str,
    initializer: str,
    boundary: str,
):
    shutil.copytree(bundle, tmp_path / "bundle")
    change_weight(tmp_path / "bundle", graph, initializer, add_a_little)
    assert compare(reference, tmp_path / "bundle", samples).first_bad == boundary


def test_a_damaged_row_of_lm_head_is_named(
    reference: Endpoint, bundle: Path, samples: list[ParitySample], tmp_path: Path
):
    shutil.copytree(bundle, tmp_path / "bundle")
    change_weight(tmp_path / "bundle", "decoder", "language_model.lm_head.weight.T", add_a_little)
    report = compare(reference, tmp_path / "bundle", samples)
    assert report.causes[0].startswith("only 1 of ")
    assert "token 5 " in report.causes[0]


def test_two_checks_of_one_engine_give_the_same_report(reference: Endpoint, bundle: Path, samples: list[ParitySample]):
    first, second = (compare(reference, bundle, samples).model_dump_json() for _ in range(2))
    assert first == second


def streamed(reference: Endpoint, bundle: Path, samples: list[ParitySample], work: Path, **options) -> ParityReport:
    model = reference.engine.model
    blocks = OnnxRuntimeTarget().open_blocks(bundle / "engines" / "onnxruntime", model.spec, "cpu")
    files = reference.tokenizer, reference.pipeline
    original = BlockwiseEndpoint(reference_blocks(checkpoint_of(model)), *files)
    gate = StreamedGate(original, CheckOptions("fp32", max_new_tokens=4, **options))
    (report,) = check_streamed([gate], BlockwiseEndpoint(blocks, *files), samples, work)
    return report


def test_a_built_engine_passes_behind_every_layer(
    reference: Endpoint, bundle: Path, samples: list[ParitySample], tmp_path: Path
):
    report = streamed(reference, bundle, samples, tmp_path)
    report.raise_if_failed()
    layers = [f"{kind}.{layer}" for kind in ("vision_block", "decoder_layer") for layer in range(3)]
    assert all(report.boundary(name).metrics["max_abs_error"] > 0 for name in layers)
    assert [(sample.reply_tokens, sample.top1_agreeing) for sample in report.streamed] == [(4, 5)] * len(samples)
    assert [step.step for step in report.decode_steps] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("graph", "initializer", "boundary"),
    [
        ("vision", "vision_model.embeddings.position_embedding", "vision_block.0"),
        ("vision", "vision_model.encoder.layers.1.attn.qkv.weight.T", "vision_block.1"),
        ("projector", "mlp1.3.bias", "projector"),
        ("embed", "language_model.model.embed_tokens.weight", "embeds"),
        ("decoder", "language_model.model.layers.2.mlp.down_proj.weight.T", "decoder_layer.2"),
        ("decoder", "language_model.rotary_cos", "decoder_layer.0"),
        ("decoder", "language_model.lm_head.weight.T", "prefill"),
    ],
)
def test_a_damaged_weight_file_is_caught_behind_its_block(
    reference: Endpoint,
    bundle: Path,
    samples: list[ParitySample],
    tmp_path: Path,
    graph: str,
    initializer: str,
    boundary: str,
):
    shutil.copytree(bundle, tmp_path / "bundle")
    change_weight(tmp_path / "bundle", graph, initializer, add_a_little)
    assert streamed(reference, tmp_path / "bundle", samples, tmp_path / "work").first_bad == boundary


def test_activations_in_files_give_the_same_report(
    reference: Endpoint, bundle: Path, samples: list[ParitySample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    in_memory = streamed(reference, bundle, samples[:2], tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr("r1v_export.parity.streamed.ACTIVATION_MEMORY_BYTES", 0)
    assert streamed(reference, bundle, samples[:2], tmp_path / "b") == in_memory
    assert any((tmp_path / "b").iterdir())
