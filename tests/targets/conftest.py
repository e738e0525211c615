"""Two small models, each as the reference and as an ONNX Runtime engine built from its exported graphs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from r1v_export import contract
from r1v_export.config import BuildConfig
from r1v_export.exporters.export import export_graph
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import ReferenceEngine
from r1v_export.targets.interface import BuildInputs
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from tests.tiny_models import checkpoint_of, random_model, tiny_spec


@dataclass
class Built:
    """A bundle's folder as far as engines care, and what ought to come out of it."""

    folder: Path
    spec: ModelSpec
    reference: ReferenceEngine

    @property
    def graphs(self) -> Path:
        return self.folder / "graphs"

    @property
    def engine_folder(self) -> Path:
        return self.folder / "engines" / "onnxruntime"

    def build_engine(self, out: Path) -> None:
        """From the graphs in this bundle, whoever has changed them."""
        inputs = BuildInputs(self.graphs, checkpoint_of(self.reference.model), None, BuildConfig())
        OnnxRuntimeTarget().build(inputs, out, lambda _: None)

    def open(self) -> OnnxRuntimeEngine:
        return OnnxRuntimeTarget().open(self.engine_folder, self.spec, "cpu")

    def open_standard(self) -> OnnxRuntimeEngine:
        """The graphs as exported, without any lowering."""
        return OnnxRuntimeEngine(self.graphs, self.graphs, self.spec.sizes)


def build(spec: ModelSpec, folder: Path, others: Built | None = None) -> Built:
    """Export the graphs of a random model and build an engine of them.

    Args:
        others: whose vision, projector and embed graphs to take, where only the decoder matters.
    """
    model = random_model(spec)
    built = Built(folder, spec, ReferenceEngine(model))
    if others is None:
        built.graphs.mkdir(parents=True)
    else:
        shutil.copytree(others.graphs, built.graphs)
    built.engine_folder.mkdir(parents=True)
    for name in contract.GRAPHS if others is None else (contract.DECODER,):
        export_graph(name, checkpoint_of(model), built.graphs, torch.float32)
    built.build_engine(built.engine_folder)
    return built


def built_once(made_once, name: str, spec: ModelSpec) -> Built:
    """The same of all workers of pytest-xdist: a random model is the same in each."""
    folder = made_once(name, lambda out: build(spec, out))
    return Built(folder, spec, ReferenceEngine(random_model(spec)))


@pytest.fixture(scope="session")
def r1v(made_once) -> Built:
    """RMS norms and QK-norm in the vision tower, as InternViT-6B."""
    return built_once(made_once, "r1v", tiny_spec())


@pytest.fixture(scope="session")
def internvl(made_once) -> Built:
    """Layer norms and qkv biases in the vision tower, as InternViT-300M; tied embeddings."""
    spec = tiny_spec(norm="layer_norm", qk_norm=False, qkv_bias=True, tie_word_embeddings=True)
    return built_once(made_once, "internvl", spec)


@pytest.fixture(params=["r1v", "internvl"])
def built(request) -> Built:
    return request.getfixturevalue(request.param)


@pytest.fixture
def copy(r1v, tmp_path) -> Built:
    """A bundle of one's own, to break."""
    shutil.copytree(r1v.folder, tmp_path / "bundle")
    return Built(tmp_path / "bundle", r1v.spec, r1v.reference)
