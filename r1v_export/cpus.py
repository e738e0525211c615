"""How many threads an operator gets on the CPU: what the user says, else what this process may use.

Respected are the physical cores, the CPU affinity, and the CPU quota of a container: `cpu.max` of cgroup v2,
`cpu.cfs_quota_us` of cgroup v1, of the process's own cgroup and of every one above it.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from r1v_export.quoting import shorten_text

ROOT = Path("/")
_OPTION, _VARIABLE = "--threads", "OMP_NUM_THREADS"
_TILES = "amx_bf16"
_BFLOAT16 = {"avx512_bf16", _TILES}
"""Instructions that multiply bfloat16 values, as Linux names them."""
_X86 = {"x86_64", "AMD64", "i686"}
_WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Instructions that add products of 8-bit integers in 32 bits."""


@dataclass(frozen=True)
class ThreadCount:
    """A number of threads, and what decided it."""

    count: int
    source: str

    def __str__(self) -> str:
        return f"{self.count} ({self.source})"


class _Asked:
    """What the user says, for the whole process: `--threads`, also for tasks on other machines, and OMP_NUM_THREADS
    as it is since it was lowered, and as it was before."""

    count: int | None = None
    of_tasks: int | None = None
    lowered: str | None = None
    before: str | None = None


def use_threads(count: int | None, of_tasks: int | None = None) -> None:
    """Let `thread_count` be `count` in this process; None lets it be found out again.

    Args:
        of_tasks: what `threads_of_tasks` is; `count` if omitted.
    """
    _Asked.count, _Asked.of_tasks = count, count if of_tasks is None else of_tasks


def threads_of_tasks() -> ThreadCount | None:
    """Threads that the user asks for, whatever CPUs this machine has: for tasks on others. None where nobody asks."""
    if _Asked.of_tasks is not None:
        return ThreadCount(_Asked.of_tasks, _OPTION)
    setting = os.environ.get(_VARIABLE, "")
    count = _threads_in(_Asked.before if _Asked.before and setting == _Asked.lowered else setting)
    return None if count is None else ThreadCount(count, _VARIABLE)


def thread_count(root: Path = ROOT) -> ThreadCount:
    """Threads for one operator: `use_threads`, else OMP_NUM_THREADS, else the CPUs that this process may use.

    A quota of 1.5 CPUs gives two threads, as the JVM and Go round. As in OpenMP itself, a value of OMP_NUM_THREADS that
    is no positive number counts for nothing.

    Args:
        root: of the file system that holds /proc and the cgroups.
    """
    if _Asked.count is not None:
        return ThreadCount(_Asked.count, _OPTION)
    if (asked := _threads_in(os.environ.get(_VARIABLE, ""))) is not None:
        return ThreadCount(asked, _VARIABLE)
    # The first of equals is named.
    return min(_limits(root), key=lambda limit: limit.count)


def _threads_in(setting: str) -> int | None:
    """The threads of an operator by a value of OMP_NUM_THREADS; None where it says none."""
    count = setting.split(",")[0].strip()
    return int(count) if count.isascii() and count.isdecimal() and len(count) < 6 and int(count) > 0 else None


def available_cpus(root: Path = ROOT) -> ThreadCount:
    """The CPUs that this process may use, hyper-threads counted: more threads than these only wait for each other.

    Args:
        root: of the file system that holds /proc and the cgroups.
    """
    machine = ThreadCount(os.cpu_count() or 1, "CPUs of this machine")
    return min([machine, *_allowed(root)], key=lambda limit: limit.count)


def limit_environment(root: Path = ROOT) -> str | None:
    """Lower OMP_NUM_THREADS to `available_cpus`; torch and numpy read it when they are imported, and start as many.

    Returns:
        A warning that says so; None where nothing was lowered.
    """
    setting = os.environ.get(_VARIABLE, "")
    counts = [part.strip().lstrip("0") for part in setting.split(",")]  # one for each level of nested loops
    if not all(count.isascii() and count.isdecimal() for count in counts):
        return None
    most = available_cpus(root)
    lowered = [count if len(count) < 6 and int(count) <= most.count else str(most.count) for count in counts]
    if lowered == counts:
        return None
    os.environ[_VARIABLE] = ",".join(lowered)
    _Asked.lowered, _Asked.before = os.environ[_VARIABLE], setting
    found, lower = shorten_text(setting, 40), ",".join(lowered)
    return f"{_VARIABLE}={found} is more threads than CPUs this process may use: lowered to {lower} ({most.source})"


def _limits(root: Path) -> Iterator[ThreadCount]:
    import psutil

    yield ThreadCount(psutil.cpu_count(logical=False) or os.cpu_count() or 1, "physical cores")
    yield from _allowed(root)


def _allowed(root: Path) -> Iterator[ThreadCount]:
    """What the system lets this process use."""
    if hasattr(os, "sched_getaffinity"):
        yield ThreadCount(len(os.sched_getaffinity(0)), "CPU affinity")
    if (quota := cpu_quota(root)) is not None:
        yield ThreadCount(max(1, math.ceil(quota)), f"CPU quota of {quota:g}")


def cpu_quota(root: Path = ROOT) -> float | None:
    """The CPUs' worth of time that the cgroups of this process allow, None without a limit."""
    return min(filter(None, map(_quota, cgroup_folders(root, "cpu"))), default=None)


def _quota(folder: Path) -> float | None:
    """The limit that one cgroup sets."""
    if fields := _read(folder / "cpu.max").split():
        quota, period = (fields[0], fields[1]) if len(fields) > 1 else (fields[0], "100000")
    else:
        quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max" in version 2, -1 in version 1, or no such files
    return int(quota) / int(period)


def cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folder of this process's cgroup in every hierarchy that has a controller, and those above it.

    Args:
        root: of the file system that holds /proc and the cgroups.
        controller: of version 1, such as "cpu" or "memory"; version 2 has one hierarchy for all.
    """
    paths = dict(_cgroup_paths(_read(root / "proc/self/cgroup"), controller))
    for version, mount_root, mount_point in _cgroup_mounts(_read(root / "proc/self/mountinfo"), controller):
        if version not in paths:
            continue
        path = PurePosixPath(paths[version])
        # In a cgroup namespace, or where the container shows its own cgroup only, the path is not below the mount's.
        below = path.relative_to(mount_root) if path.is_relative_to(mount_root) else PurePosixPath()
        below = below if ".." not in below.parts else PurePosixPath()
        top = root / mount_point.lstrip("/")
        yield from (top / folder for folder in (below, *below.parents))


def _cgroup_paths(content: str, controller: str) -> Iterator[tuple[int, str]]:
    """(version, path) of the lines of /proc/self/cgroup that are about a controller."""
    for line in content.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield 2, path
        elif controller in controllers.split(","):
            yield 1, path


def _cgroup_mounts(content: str, controller: str) -> Iterator[tuple[int, str, str]]:
    """(version, root within the hierarchy, mount point) of such hierarchies, from /proc/self/mountinfo."""
    for line in content.splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields, kind = mount.split(" "), filesystem.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and controller in kind[2].split(",")):
            yield 2 if kind[0] == "cgroup2" else 1, fields[3], fields[4].replace("\\040", " ")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def has_bfloat16_products(root: Path = ROOT) -> bool:
    """Whether this x86 CPU has instructions for products of bfloat16 values. Imports and runs no library.

    Args:
        root: of the file system that holds /proc.
    """
    return not _BFLOAT16.isdisjoint(_instructions(root))


def has_bfloat16_tiles(root: Path = ROOT) -> bool:
    """Whether this x86 CPU multiplies tiles of bfloat16 values (AMX), several times as fast as rows of them.

    Args:
        root: of the file system that holds /proc.
    """
    return _TILES in _instructions(root)


def is_x86() -> bool:
    """Whether this machine's CPU is an x86 one."""
    return platform.machine() in _X86


def saturates_int8_products(root: Path = ROOT) -> bool:
    """Whether this is an x86 CPU whose libraries add products of 8-bit integers in pairs in 16 bits, which overflows.

    True of an x86 CPU that does not tell its instructions.

    Args:
        root: of the file system that holds /proc.
    """
    return is_x86() and _WIDE_SUMS.isdisjoint(_instructions(root))


def _instructions(root: Path) -> list[str]:
    """Sets of instructions of an x86 CPU, as Linux names them."""
    lines = _read(root / "proc/cpuinfo").splitlines()
    return next((line for line in lines if line.startswith("flags")), "").split()
