"""How much memory is left, the machine's and its cgroups', and what a process gives back."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import numpy as np
import psutil
import pytest

from r1v_export.memory import available_bytes, freed_memory_kept, most_bytes, release_free_memory

GIB = 1 << 30
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have heaps of their own")


def cgroup(root: Path, version: int, files: dict[str, str]) -> Path:
    """A file system in which this process is in the cgroup /box of a hierarchy for memory."""
    (root / "proc/self").mkdir(parents=True)
    line, mount = ("0::/box", "cgroup2 cgroup2 rw") if version == 2 else ("4:memory:/box", "cgroup cgroup rw,memory")
    (root / "proc/self/cgroup").write_text(f"{line}\n")
    (root / "proc/self/mountinfo").write_text(f"30 20 0:26 / /sys/fs/cgroup rw - {mount}\n")
    folder = root / "sys/fs/cgroup/box"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 of 16 GiB left."""
    memory = psutil.virtual_memory()._replace(available=8 * GIB, total=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_without_a_cgroup_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == 8 * GIB


def test_a_limit_of_version_2_counts_and_pages_of_files_are_given_back(tmp_path: Path) -> None:
    files = {
        "memory.max": str(4 * GIB),
        "memory.current": str(3 * GIB),
        "memory.stat": f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n",
    }
    assert available_bytes(cgroup(tmp_path, 2, files)) == 2 * GIB


def test_a_limit_of_version_1_counts(tmp_path: Path) -> None:
    files = {"memory.limit_in_bytes": str(4 * GIB), "memory.usage_in_bytes": str(3 * GIB)}
    assert available_bytes(cgroup(tmp_path, 1, files)) == GIB


def test_no_limit_and_a_limit_above_the_machine_change_nothing(tmp_path: Path) -> None:
    assert available_bytes(cgroup(tmp_path / "a", 2, {"memory.max": "max", "memory.current": "5"})) == 8 * GIB
    files = {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": str(GIB)}
    assert available_bytes(cgroup(tmp_path / "b", 1, files)) == 8 * GIB


@pytest.mark.parametrize(
    ("version", "files", "most"),
    [
        (2, {"memory.max": str(4 * GIB), "memory.current": str(3 * GIB)}, 4 * GIB),
        (2, {"memory.max": "max"}, 16 * GIB),
        (1, {"memory.limit_in_bytes": str(6 * GIB)}, 6 * GIB),
        (1, {"memory.limit_in_bytes": str(2**63 - 4096)}, 16 * GIB),
        (1, {}, 16 * GIB),
    ],
)
def test_what_a_process_could_have_alone_does_not_depend_on_what_others_take(
    version: int, files: dict[str, str], most: int, tmp_path: Path
) -> None:
    assert most_bytes(cgroup(tmp_path, version, files)) == most


@GLIBC
def test_what_was_freed_between_blocks_that_live_on_is_given_back() -> None:
    blocks = [bytearray(100_000) for _ in range(2000)]  # too small to be mapped alone
    del blocks[::2], blocks[::2]
    kept = anonymous_bytes()
    release_free_memory()
    assert len(blocks) == 500
    assert kept - anonymous_bytes() > 0.9 * 1500 * 96_000  # of each, the pages that hold nothing else


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


@GLIBC
def test_kept_memory_is_made_of_what_was_freed_and_goes_back_at_the_end() -> None:
    def faults_of_filling() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(64 << 20, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with freed_memory_kept():
        first, second = faults_of_filling(), faults_of_filling()
        kept = anonymous_bytes()
    assert second < first / 10
    assert kept - anonymous_bytes() > 48 << 20
