"""A real tritonserver, as nvidia-pytriton's wheel has it, in the environment that `make test` makes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ENVIRONMENT = Path(os.environ.get("R1V_TRITON_ENVIRONMENT", ".venv-triton")).absolute()
START_SECONDS = 120


def installed() -> bool:
    return (ENVIRONMENT / "bin" / "python").exists()


class TritonServer:
    """The server over a model repository, on free ports.

    Args:
        repository: of models.
        scratch: for the backend's copy and the log.
        library: of the only backend, `libtriton_r1v.so`; Triton's Python backend if None.
    """

    def __init__(self, repository: Path, scratch: Path, library: Path | None = None) -> None:
        self.log = scratch / "triton.log"
        self.http, self.grpc, metrics = _free_ports(3)
        self.url, self.metrics_url = f"http://127.0.0.1:{self.http}", f"http://127.0.0.1:{metrics}/metrics"
        self._prefix = f"r1v_{uuid.uuid4().hex[:8]}_"
        packages = next((ENVIRONMENT / "lib").glob("python3*/site-packages"))
        if library is None:
            _copy_python_backend(packages, scratch / "backends/python")
        else:
            (scratch / "backends/r1v").mkdir(parents=True)
            shutil.copy2(library, scratch / "backends/r1v")
        command = [
            str(packages / "pytriton/tritonserver/bin/tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={scratch / 'backends'}",
            *("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=10"),
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            *(f"--http-port={self.http}", f"--grpc-port={self.grpc}", f"--metrics-port={metrics}"),
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
        ]
        libraries = f"{sysconfig.get_config_var('LIBDIR')}:{packages / 'nvidia_pytriton.libs'}"
        environment = {
            "HOME": str(scratch),
            "PATH": f"{ENVIRONMENT / 'bin'}:/usr/bin:/bin",
            "LD_LIBRARY_PATH": libraries,
            "R1V_ONNXRUNTIME": str(packages / "onnxruntime/capi"),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            if self.status("/v2/health/ready") == 200:
                return
            time.sleep(0.2)
        raise AssertionError(f"tritonserver is not ready:\n{self.log.read_text(errors='replace')[-6000:]}")

    def status(self, path: str) -> int:
        """The status of a GET, 0 if nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def stubs(self, model: str) -> list[int]:
        """Process ids of a model's Python processes."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            is_stub = arguments[0].endswith(b"triton_python_backend_stub")
            if is_stub and parent == self.process.pid and f"/{model}/".encode() in arguments[1]:
                found.append(int(folder.name))
        return found

    def shared_memory(self) -> list[str]:
        return [path.name for path in Path("/dev/shm").glob(f"{self._prefix}*")]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for name in self.shared_memory():
            (Path("/dev/shm") / name).unlink(missing_ok=True)


def _copy_python_backend(packages: Path, folder: Path) -> None:
    """The Python backend with the stub for this Python; the server refuses links."""
    shutil.copytree(packages / "pytriton/tritonserver/backends/python", folder)
    version = sysconfig.get_python_version()
    stub = packages / f"pytriton/tritonserver/python_backend_stubs/{version}/triton_python_backend_stub"
    shutil.copy2(stub, folder)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
