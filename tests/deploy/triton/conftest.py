from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from r1v_export.bundle import Bundle
from r1v_export.deploy.triton.repository import MODELS_FOLDER, TritonOptions, write_repository
from tests.deploy.triton.tritonserver import TritonServer, installed


@pytest.fixture(scope="session")
def deployment(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a Triton deployment. Not to be written to."""
    out = tmp_path_factory.mktemp("triton") / "deployment"
    options = TritonOptions(vision_target="onnxruntime", tiles=8, max_rows=4, cache_mib=64)  # the same on each machine
    write_repository(Bundle.open(nano_bundle), out, options)
    return out


def start_triton(deployment: Path, scratch: Path, library: Path | None = None) -> TritonServer:
    """A server of a deployment that is ready; `library` as of `TritonServer`."""
    if not installed():
        pytest.skip("no tritonserver: `make test` installs it")
    server = TritonServer(deployment / MODELS_FOLDER, scratch, library)
    try:
        server.wait_until_ready()
    except BaseException:
        server.stop()
        raise
    return server


@pytest.fixture(scope="session")
def triton(deployment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    server = start_triton(deployment, tmp_path_factory.mktemp("tritonserver"))
    yield server
    server.stop()
