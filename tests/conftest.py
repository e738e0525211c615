"""Fixtures that every package's tests share."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.exporters import export
from r1v_export.pipeline.build import build
from tests import shared_traces
from tests.engines import programs

# The same examples on every run, and no time limits: a busy machine must not fail a test.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts of graphs/ anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test come first, the slowest before all: else one worker of pytest-xdist would begin the
    longest when others end."""
    seconds: dict[Path, float] = {}
    for item in items:
        if marker := item.get_closest_marker("slow"):
            seconds[item.path] = max(seconds.get(item.path, 0), *marker.args, 10)
    items.sort(key=lambda item: -seconds.get(item.path, 0))


def pytest_collection_finish() -> None:
    """Let garbage collection pass over what stays anyway, and run less often: a trace makes millions of objects."""
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder once for all workers of pytest-xdist: the first that needs it makes it, each gets a copy."""

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        own = tmp_path_factory.mktemp(name) / name
        if "PYTEST_XDIST_WORKER" not in os.environ:
            make(own)
            return own
        shared = tmp_path_factory.getbasetemp().parent / f"{name}-of-all-workers"
        with shared.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not shared.exists():
                make(own)
                shutil.copytree(own, shared.with_suffix(".unfinished"))
                shared.with_suffix(".unfinished").rename(shared)
                return own
        return Path(shutil.copytree(shared, own))

    return make_once


@pytest.fixture(scope="session", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trace each graph once, for all workers: a trace takes seconds and depends on the spec and the compute type alone.

    Every export gets a copy of its own. Tests that want a trace call `export.trace_graph`, so that they share it.
    """
    trace = export.trace_graph
    if "PYTEST_XDIST_WORKER" in os.environ:
        trace = shared_traces.shared(trace, tmp_path_factory.getbasetemp().parent / "traces")
    traced = cache(trace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_graph", lambda name, spec, compute: traced(name, spec, compute).clone())
        yield


@pytest.fixture(scope="session")
def synth_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny random checkpoint in r1v-nano's shape: bfloat16, R1V3 prompt. Not to be written to."""
    folder = tmp_path_factory.mktemp("synth") / "nano"
    return Checkpoint.open(synthesize(folder, preset="nano", vision_layers=2, language_layers=2))


@pytest.fixture(scope="session")
def nano_bundle(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The shipped model, built in fp32 for ONNX Runtime, parity gate passed. Not to be written to."""
    config = BuildConfig(parity=ParityConfig(questions=4))
    return made_once("nano", lambda out: build(config, out))


@pytest.fixture(scope="session")
def int8_inputs_bundle(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The shipped model with int4 weights, rounded to nearest, and inputs in 8 bits. Not to be written to."""
    config = BuildConfig(precision="int4", recipe="int4-rtn", parity=ParityConfig(enabled=False))
    return made_once("nano-int4-int8-inputs", lambda out: build(config, out))


@pytest.fixture(scope="session")
def engines(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Everything of engines/, built as a release; where R1V_ENGINES names a folder, in that, which is kept."""
    if kept := os.environ.get("R1V_ENGINES"):
        return programs.build(Path(kept), options=programs.UNITY)
    return made_once("engines", lambda folder: programs.build(folder, options=programs.UNITY))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with one ViT block and one decoder layer."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-model"
    return synthesize(folder, preset="nano", vision_layers=1, language_layers=1)


@pytest.fixture(scope="session")
def tiny_config(tiny_model: Path) -> BuildConfig:
    return BuildConfig(model=str(tiny_model), parity=ParityConfig(enabled=False))


@pytest.fixture(scope="session")
def tiny_built(tiny_config: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle. Not to be written to."""
    return build(tiny_config, tmp_path_factory.mktemp("bundles") / "tiny").out


@pytest.fixture
def tiny_bundle(tiny_built: Path, tmp_path: Path) -> Path:
    """A copy of its bundle, to be changed."""
    return Path(shutil.copytree(tiny_built, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Path -> content of every file below a folder."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
