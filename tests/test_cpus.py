"""Thread counts, in made-up file systems with the files that Docker, Kubernetes and systemd give a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from r1v_export.cpus import (
    ThreadCount,
    available_cpus,
    cpu_quota,
    has_bfloat16_products,
    has_bfloat16_tiles,
    limit_environment,
    saturates_int8_products,
    thread_count,
    threads_of_tasks,
    use_threads,
)

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 24 0:27 {root} /sys/fs/cgroup/cpu,cpuacct ro shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "29 24 0:25 / /sys/fs/cgroup/memory ro shared:8 - cgroup cgroup rw,memory\n22 1 8:1 / / rw - ext4 /dev/root rw"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """12 logical CPUs on 8 cores, nothing said."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 12 if logical else 8)
    use_threads(None)
    yield
    use_threads(None)


def write(root: Path, **files: str) -> Path:
    """Files below `root`; two underscores in a name are a slash, `cgroup` is where cgroups are mounted."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("cgroup/", "sys/fs/cgroup/", 1).replace("max", "cpu.max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def v2(root: Path, path: str, **limits: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{path}\n")
    (root / "proc/self/mountinfo").write_text(f"{OTHER}\n{V2}\n")
    return write(root, **limits)


def v1(root: Path, path: str, mount_root: str, folder: str, quota: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"5:memory:/other\n4:cpu,cpuacct:{path}\n")
    (root / "proc/self/mountinfo").write_text(f"{OTHER}\n{V1.format(root=mount_root)}\n")
    cgroup = root / "sys/fs/cgroup/cpu,cpuacct" / folder
    cgroup.mkdir(parents=True)
    (cgroup / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (cgroup / "cpu.cfs_period_us").write_text("100000\n")
    return root


def test_without_a_limit_the_physical_cores_count(tmp_path: Path) -> None:
    assert thread_count(tmp_path) == ThreadCount(8, "physical cores")
    assert thread_count(v2(tmp_path / "a", "/", cgroup__max="max 100000")) == ThreadCount(8, "physical cores")


def test_an_affinity_below_the_cores_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    assert thread_count(tmp_path) == ThreadCount(3, "CPU affinity")


@pytest.mark.parametrize(("limit", "count"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)])
def test_docker_s_quota_counts(limit: str, count: int, tmp_path: Path) -> None:
    found = thread_count(v2(tmp_path, "/", cgroup__max=f"{limit}\n"))
    assert found.count == count
    assert found.source.startswith("CPU quota of ")


def test_a_quota_above_the_cores_changes_nothing(tmp_path: Path) -> None:
    assert thread_count(v2(tmp_path, "/", cgroup__max="6400000 100000")).count == 8


def test_the_tightest_of_nested_cgroups_counts(tmp_path: Path) -> None:
    limits = {
        "cgroup__kubepods__max": "600000 100000",
        "cgroup__kubepods__pod1__max": "300000 100000",
        "cgroup__kubepods__pod1__c__max": "max 100000",
        "cgroup__kubepods__pod2__max": "100000 100000",
    }
    assert cpu_quota(v2(tmp_path, "/kubepods/pod1/c", **limits)) == 3


def test_a_cgroup_namespace_shows_its_own_top(tmp_path: Path) -> None:
    assert cpu_quota(v2(tmp_path, "/../../user.slice", cgroup__max="250000 100000")) == 2.5


@pytest.mark.parametrize(
    ("path", "mount_root", "folder"),
    [
        ("/docker/abc", "/", "docker/abc"),
        ("/docker/abc", "/docker/abc", "."),
        ("/docker/abc/inner", "/docker/abc", "."),
    ],
)
def test_quotas_of_version_1_count(path: str, mount_root: str, folder: str, tmp_path: Path) -> None:
    assert cpu_quota(v1(tmp_path, path, mount_root, folder, "350000")) == 3.5


def test_minus_one_is_no_quota_in_version_1(tmp_path: Path) -> None:
    assert cpu_quota(v1(tmp_path, "/", "/", ".", "-1")) is None


def test_what_the_user_says_counts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = v2(tmp_path, "/", cgroup__max="100000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert thread_count(root) == ThreadCount(5, "OMP_NUM_THREADS")
    use_threads(11)
    assert thread_count(root) == ThreadCount(11, "--threads")


@pytest.mark.parametrize("value", ["", "0", "-2", "many", "9" * 5000])
def test_an_omp_num_threads_that_is_no_number_counts_for_nothing(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert thread_count(tmp_path).source == "physical cores"


def test_available_are_hyper_threads_too_within_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cpus(tmp_path) == ThreadCount(12, "CPUs of this machine")
    assert available_cpus(v2(tmp_path, "/", cgroup__max="250000 100000")) == ThreadCount(3, "CPU quota of 2.5")


@pytest.mark.parametrize(
    ("value", "lowered"),
    [("9999", "12"), ("13,2", "12,2"), ("0" * 9 + "44", "12"), ("9" * 5000, "12"), ("12", None), ("5,2", None)],
)
def test_an_omp_num_threads_above_the_cpus_is_lowered_with_a_warning(
    value: str, lowered: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    warning = limit_environment(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == (lowered or value)
    assert (warning is None) == (lowered is None)
    assert warning is None or (f"lowered to {lowered}" in warning and len(warning) < 200)


def test_tasks_on_other_machines_get_what_the_user_says_and_not_what_this_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of_tasks() is None
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    limit_environment(tmp_path)
    assert (thread_count(), threads_of_tasks()) == (
        ThreadCount(12, "OMP_NUM_THREADS"),
        ThreadCount(64, "OMP_NUM_THREADS"),
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of_tasks() == ThreadCount(3, "OMP_NUM_THREADS")
    use_threads(12, of_tasks=32)
    assert (thread_count(), threads_of_tasks()) == (ThreadCount(12, "--threads"), ThreadCount(32, "--threads"))


@pytest.mark.parametrize("value", ["", "0", "many", "-3"])
def test_an_omp_num_threads_that_openmp_ignores_stays(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert limit_environment(tmp_path) is None
    assert os.environ["OMP_NUM_THREADS"] == value


def test_the_command_line_lowers_it_before_torch_is_imported() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "9999", "COLUMNS": "200"}
    command = [sys.executable, "-m", "r1v_export.cli.main", "doctor", "--format", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.count("OMP_NUM_THREADS=9999 is more threads than CPUs") == 1
    assert json.loads(done.stdout)["machine"]["threads"]["count"] <= (os.cpu_count() or 1)


def test_this_machine_has_a_thread_count() -> None:
    assert thread_count().count >= 1


@pytest.mark.parametrize(
    ("flags", "has", "in_tiles"),
    [
        ("fpu avx512_bf16 avx512_vnni", True, False),
        ("fpu amx_bf16", True, True),
        ("fpu avx512_bf16 amx_int8", True, False),
        ("fpu avx2 avx512_bf16x", False, False),
        (None, False, False),
    ],
)
def test_products_are_read_from_the_cpu_s_flags(flags: str | None, has: bool, in_tiles: bool, tmp_path: Path) -> None:
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n")
    assert has_bfloat16_products(tmp_path) is has
    assert has_bfloat16_tiles(tmp_path) is in_tiles


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu avx2", True),
        ("x86_64", "fpu avx512f avx512bw", True),
        ("x86_64", "fpu avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("AMD64", None, True),
        ("aarch64", None, False),
    ],
)
def test_products_of_8_bits_saturate_on_x86_without_vnni(
    machine: str, flags: str | None, saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert saturates_int8_products(tmp_path) is saturates
