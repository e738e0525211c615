"""The small models of `tests/targets/conftest.py`, as engines of this target."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from r1v_export.bundle import Bundle
from r1v_export.config import BuildConfig
from r1v_export.model_spec import ModelSpec
from r1v_export.targets.interface import BuildInputs
from r1v_export.targets.openvino import doctor
from r1v_export.targets.openvino.target import OpenVinoTarget
from tests.targets.conftest import Built
from tests.tiny_models import checkpoint_of

NEEDS_OPENVINO = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"openvino is not installed: {doctor.INSTALL}"
)
"""For tests and files of tests; imports nothing, because `library.py` is to be the first to do so."""


@dataclass
class OpenVino:
    """A bundle's folder with an engine of OpenVINO, and what the engine was made from."""

    built: Built

    @property
    def engine_folder(self) -> Path:
        return self.built.folder / "engines" / "openvino"

    @property
    def spec(self) -> ModelSpec:
        return self.built.spec

    def build_engine(self, out: Path, **options: str) -> None:
        config = BuildConfig(targets={"openvino": {"matmul": "float32", **options}})
        inputs = BuildInputs(self.built.graphs, checkpoint_of(self.built.reference.model), None, config)
        OpenVinoTarget().build(inputs, out, lambda _: None)

    def open(self) -> Any:
        return OpenVinoTarget().open(self.engine_folder, self.spec, "cpu")


def make(built: Built, folder: Path, **options: str) -> OpenVino:
    """A copy of a bundle's graphs with an engine of its own, which computes in float32 if no option says otherwise."""
    shutil.copytree(built.graphs, folder / "graphs")
    made = OpenVino(Built(folder, built.spec, built.reference))
    made.engine_folder.mkdir(parents=True)
    made.build_engine(made.engine_folder, **options)
    return made


@pytest.fixture(scope="session")
def of_r1v(r1v, tmp_path_factory) -> OpenVino:
    return make(r1v, tmp_path_factory.mktemp("openvino") / "r1v")


@pytest.fixture(scope="session")
def of_internvl(internvl, tmp_path_factory) -> OpenVino:
    return make(internvl, tmp_path_factory.mktemp("openvino") / "internvl")


@pytest.fixture(params=["of_r1v", "of_internvl"])
def openvino_built(request) -> OpenVino:
    return request.getfixturevalue(request.param)


@pytest.fixture
def own(r1v, tmp_path) -> OpenVino:
    """A bundle of one's own, to break."""
    return make(r1v, tmp_path / "bundle")


@pytest.fixture
def open_int8_inputs(int8_inputs_bundle: Path) -> Callable[[], Any]:
    """Opens anew what decodes a bundle whose 4-bit weights have inputs in 8 bits."""
    bundle = Bundle.open(int8_inputs_bundle)
    engine = bundle.folder / "engines/onnxruntime/decoder/openvino"
    return lambda: OpenVinoTarget().open_decoder(engine, bundle.folder, bundle.spec)
