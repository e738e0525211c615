"""Opening an engine on a stand-in for the library and the GPU: refitting, and kernels kept between processes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from r1v_export import contract
from r1v_export.errors import BundleError
from r1v_export.targets.tensorrt.build.parts import PARTS
from r1v_export.targets.tensorrt.build.plan import DESCRIPTION, GRAPH, PLAN, read_info
from r1v_export.targets.tensorrt.library import TENSORRT_RTX, Library
from r1v_export.targets.tensorrt.runtime import loading
from r1v_export.targets.tensorrt.runtime.engine import TensorRTEngine
from tests.targets.tensorrt.conftest import Host, StandInEngine


def external_weights(model: onnx.ModelProto, folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every weight that a graph refers to, as ONNX defines it."""
    weights = {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            content = (folder / place["location"]).read_bytes()
            start = int(place["offset"])
            weights[tensor.name] = content[start : start + int(place["length"])]
    return weights


class Stripped:
    """A library whose engines compute, and that records what they are refitted with."""

    def __init__(self, folder: Path, version: str) -> None:
        self.refitted: dict[str, dict[str, bytes]] = {}
        self.takes_weights = True
        recorder = self

        class Runtime:
            def __init__(self, logger: Any) -> None: ...

            def deserialize_cuda_engine(self, content: Any) -> StandInEngine:
                digest = hashlib.sha256(content).hexdigest()
                engines = folder / "engines" / TENSORRT_RTX
                (name,) = (part.name for part in PARTS if read_info(engines, part.name).sha256 == digest)
                engine = StandInEngine(engines / f"{name}{GRAPH}", folder, read_info(engines, name))
                engine.name = name
                return engine

        class Refitter:
            def __init__(self, engine: StandInEngine, logger: Any) -> None:
                self.engine = engine

            def refit_cuda_engine(self) -> bool:
                return self.engine.name in recorder.refitted

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, logger: Any) -> None:
                self.engine = refitter.engine

            def refit_from_bytes(self, model: bytes, path: str) -> bool:
                found = external_weights(onnx.load_model_from_string(model), Path(path).parent)
                recorder.refitted[self.engine.name] = found
                return recorder.takes_weights

        self.library = Library(
            TENSORRT_RTX,
            SimpleNamespace(
                __version__=version,
                ILogger=object,
                IRuntimeCache=object,
                Runtime=Runtime,
                Refitter=Refitter,
                OnnxParserRefitter=OnnxParserRefitter,
            ),
        )


@pytest.fixture
def bundle(fp32, tmp_path) -> Path:
    return Path(shutil.copytree(fp32.folder, tmp_path / "bundle"))


@pytest.fixture
def stand_in(fp32, bundle, tmp_path, monkeypatch) -> Stripped:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "compute_capability", lambda: 89)
    monkeypatch.setattr(loading, "Cuda", Host)
    return Stripped(bundle, fp32.info(contract.VISION).version)


def strip(bundle: Path) -> None:
    """Let the descriptions say that the plans hold no weights."""
    for part in PARTS:
        path = bundle / "engines" / TENSORRT_RTX / f"{part.name}{DESCRIPTION}"
        info = read_info(path.parent, part.name).model_copy(update={"stripped": True})
        path.write_text(info.model_dump_json())


def opened(fp32, bundle: Path, stand_in: Stripped) -> TensorRTEngine:
    return loading.open_engine(stand_in.library, bundle / "engines" / TENSORRT_RTX, fp32.spec, "cuda")


def pixels_of(fp32) -> np.ndarray:
    size = fp32.spec.tiling.tile_size
    return np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32)


def run_all(engine: TensorRTEngine, fp32) -> np.ndarray:
    """Vision, the projector by itself, and a step of the decoder."""
    features = engine.vision(pixels_of(fp32))
    engine.projector(features.copy())
    prompt = np.zeros((1, 3, fp32.spec.language.hidden_size), np.float32)
    where = (np.arange(3)[None], np.array([0]), np.array([3]), np.array([[2]]))
    engine.decoder(1, 8).step(prompt, *where)
    return features


def test_every_weight_of_a_stripped_plan_comes_from_the_bundles_own_data(fp32, bundle, stand_in) -> None:
    strip(bundle)
    features = run_all(opened(fp32, bundle, stand_in), fp32)
    np.testing.assert_allclose(features, fp32.reference.vision(pixels_of(fp32)), atol=1e-4)
    for part in PARTS:
        expected: dict[str, bytes] = {}
        for name in part.graphs:
            graph = onnx.load(bundle / "graphs" / f"{name}.onnx", load_external_data=False)
            expected |= external_weights(graph, bundle / "graphs")
        assert len(expected) >= 4
        assert stand_in.refitted[part.name] == expected


def test_plans_that_hold_their_weights_are_not_refitted(fp32, bundle, stand_in) -> None:
    run_all(opened(fp32, bundle, stand_in), fp32)
    assert stand_in.refitted == {}


def test_weights_that_do_not_fit_are_said_with_the_graph_that_they_are_of(fp32, bundle, stand_in) -> None:
    strip(bundle)
    stand_in.takes_weights = False
    with pytest.raises(BundleError, match=r"do not fit its engine[\s\S]*vision\.onnx"):
        run_all(opened(fp32, bundle, stand_in), fp32)


def test_compiled_kernels_are_kept_once_per_plan_and_given_to_the_next_process(
    fp32, bundle, stand_in, tmp_path
) -> None:
    for runs in (1, 2):
        run_all(opened(fp32, bundle, stand_in), fp32)
        files = list((tmp_path / "cache").rglob("*.kernels"))
        assert {path.read_bytes() for path in files} == {b"+" * runs}
        assert len(files) == len(PARTS)
    names = " ".join(path.name for path in files)
    for part in PARTS:
        plan = bundle / "engines" / TENSORRT_RTX / f"{part.name}{PLAN}"
        assert hashlib.sha256(plan.read_bytes()).hexdigest()[:16] in names
