"""A tiny model built with the real TensorRT-RTX on whatever machine this is, and a stand-in for the GPU to run it on.

The stand-in has TensorRT's interface of engines and contexts and computes the lowered graph, at the addresses that it
is given, with ONNX Runtime: sessions are then compared with PyTorch without a GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from r1v_export import contract
from r1v_export.config import BuildConfig
from r1v_export.model_spec import ModelSpec
from r1v_export.reference.model import ReferenceEngine
from r1v_export.targets.interface import BuildInputs
from r1v_export.targets.tensorrt.build.plan import GRAPH, PlanInfo, read_info
from r1v_export.targets.tensorrt.library import TENSORRT_RTX, Library, load
from r1v_export.targets.tensorrt.runtime.engine import TensorRTEngine
from r1v_export.targets.tensorrt.runtime.session import Session
from r1v_export.targets.tensorrt.target import TensorRTRTXTarget
from tests.tiny_models import checkpoint_of

SIZES = {
    "sm": [89],
    "tile_profiles": [[1, 2]],
    "capacity": 24,
    "max_prefill": 4,
    "max_batch": 2,
    "decode_profile": True,
}
"""Small, so that more tiles and longer prompts than an engine takes at once are quickly made."""


@dataclass
class Built:
    """A bundle's folder with graphs and a TensorRT-RTX engine, and what ought to come out of it."""

    folder: Path
    spec: ModelSpec
    reference: ReferenceEngine
    reported: list[tuple[float, str]]
    """What the build reported of its progress: the fraction done, and its status."""

    @property
    def engine_folder(self) -> Path:
        return self.folder / "engines" / TENSORRT_RTX

    def info(self, name: str) -> PlanInfo:
        return read_info(self.engine_folder, name)


@pytest.fixture(scope="session")
def library() -> Library:
    pytest.importorskip("tensorrt_rtx")
    return load(TENSORRT_RTX)


@pytest.fixture(scope="session")
def fp32(r1v, tmp_path_factory, library) -> Built:
    """The tiny R1V's graphs, built in float32: attention has no fused kernel there, and is built as several."""
    built = Built(tmp_path_factory.mktemp("trt-fp32"), r1v.spec, r1v.reference, [])
    shutil.copytree(r1v.graphs, built.folder / "graphs")
    built.engine_folder.mkdir(parents=True)
    config = BuildConfig.model_validate({"precision": "fp32", "targets": {TENSORRT_RTX: SIZES}})
    inputs = BuildInputs(built.folder / "graphs", checkpoint_of(r1v.reference.model), None, config)
    TensorRTRTXTarget().build(
        inputs, built.engine_folder, lambda done, total, status="": built.reported.append((done / total, status))
    )
    return built


class Host:
    """The accelerator's interface on the CPU."""

    device = torch.device("cpu")
    stream = 0

    def __init__(self) -> None:
        self.captured = 0

    def synchronize(self) -> None: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """As a captured graph: with the shapes and addresses of now, whatever the context is prepared for later."""
        self.captured += 1
        context = work.__self__._context  # type: ignore[attr-defined]
        state = dict(context.shapes), dict(context.addresses)

        def replay() -> None:
            later, (context.shapes, context.addresses) = (context.shapes, context.addresses), state
            work()
            context.shapes, context.addresses = later

        return replay


class StandInEngine:
    def __init__(self, graph: Path, weights_root: Path, info: PlanInfo) -> None:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_root))
        self.session = ort.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
        self.info = info
        self.profiles: list[int] = []
        self.configs: list[StandInRuntimeConfig | None] = []
        """That its contexts were made with."""

    def create_runtime_config(self) -> StandInRuntimeConfig:
        return StandInRuntimeConfig()

    def create_execution_context(self, config: StandInRuntimeConfig | None = None) -> StandInContext:
        self.configs.append(config)
        return StandInContext(self)


class StandInRuntimeConfig:
    """An IRuntimeConfig; a cache grows by one byte whenever it is asked for its content."""

    cache: StandInRuntimeCache | None = None

    def create_runtime_cache(self) -> StandInRuntimeCache:
        return StandInRuntimeCache()

    def set_runtime_cache(self, cache: StandInRuntimeCache) -> bool:
        self.cache = cache
        return True


class StandInRuntimeCache:
    content = b""

    def deserialize(self, blob: bytes) -> bool:
        if blob == b"broken":
            return False
        self.content = blob
        return True

    def serialize(self) -> bytes:
        self.content += b"+"
        return self.content


class StandInContext:
    """An IExecutionContext that computes with ONNX Runtime, in the caller's memory."""

    def __init__(self, engine: StandInEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.engine.profiles.append(number)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        sizes: dict[str, int] = {}
        binding = self.engine.session.io_binding()
        for tensor in self.engine.info.bindings:
            symbols = zip(tensor.shape, self.shapes.get(tensor.name, ()), strict=False)
            sizes |= {dim: size for dim, size in symbols if isinstance(dim, str)}
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
            bind = binding.bind_input if tensor.is_input else binding.bind_output
            bind(tensor.name, "cpu", 0, np.dtype(tensor.dtype), shape, self.addresses[tensor.name])
        self.engine.session.run_with_iobinding(binding)
        return True


@dataclass
class StandIn:
    """An engine of sessions on stand-ins, which can be looked into."""

    engine: TensorRTEngine
    plans: dict[str, StandInEngine]
    accelerator: Host


@pytest.fixture
def stand_in(fp32: Built) -> StandIn:
    plans: dict[str, StandInEngine] = {}
    accelerator = Host()

    def load_plan(name: str) -> Session:
        info = fp32.info(name)
        plans[name] = StandInEngine(fp32.engine_folder / f"{name}{GRAPH}", fp32.folder, info)
        return Session(plans[name], info, accelerator, name)

    embed = fp32.folder / "graphs" / f"{contract.EMBED}.onnx"
    return StandIn(TensorRTEngine(TENSORRT_RTX, fp32.spec, load_plan, embed), plans, accelerator)


@pytest.fixture
def graphs(copy):
    """The folder of a bundle's standard graphs."""
    return copy.graphs
