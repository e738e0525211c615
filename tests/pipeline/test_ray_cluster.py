"""Tasks on a real Ray cluster of two workers on this machine: the bytes of one process, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from r1v_export.cli import main
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig
from r1v_export.cpus import ThreadCount, use_threads
from r1v_export.errors import CapabilityError, InputError, R1VError, UsageError
from r1v_export.memory import available_bytes
from r1v_export.pipeline import gate_memory, ray_cluster, ray_worker
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.ray_cluster import RayCluster, open_cluster
from r1v_export.pipeline.ray_worker import Done
from r1v_export.pipeline.workers import Task
from r1v_export.progress import ignore_progress
from tests.pipeline import ray_tasks

pytestmark = pytest.mark.slow(40)

Tree = Callable[[Path], dict[str, bytes]]

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
STORE_BYTES = 80_000_000  # Ray takes no less


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two workers with a CPU each, to which this process is connected: processes of workers, which take
    seconds to start, live as long as a connection."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SETTINGS.items():
            environment.setenv(name, value)
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
        folder = cluster.head_node.get_session_dir_path()
        try:
            cluster.add_node(**node)
            ray.init(cluster.address, log_to_driver=False, configure_logging=False)
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(address: str, tmp_path: Path) -> Iterator[RayCluster]:
    with open_cluster(address, tmp_path / "ray", [tmp_path], "cpu") as cluster:
        yield cluster


def quantized(model: Path) -> BuildConfig:
    """INT4 by GPTQ, whose sums depend on their order, in four shards."""
    return BuildConfig(
        model=str(model),
        precision="int4",
        calibration=CalibrationConfig(samples=4, shards=4),
        parity=ParityConfig(enabled=False),
    )


def test_a_build_whose_workers_are_killed_has_the_bytes_of_one_process(
    address: str, tiny_model: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle: the process of a worker that collects statistics, and of one that writes a graph."""
    submit, doomed = RayCluster.submit, {"shard 2/4": 6, "decoder-graph": 1}

    def submit_doomed(self: RayCluster, task: Task) -> object:
        if task.name in doomed:
            marker = tmp_path / task.folder.name
            arguments = (task.function, marker, doomed[task.name], task.arguments)
            task = replace(task, function=ray_tasks.die_once, arguments=arguments)
        return submit(self, task)

    config = quantized(tiny_model)
    build(config, tmp_path / "one")
    monkeypatch.setattr(RayCluster, "submit", submit_doomed)
    monkeypatch.chdir(tmp_path)
    built = build(config, Path("ray"), ray=address)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"2-of-4", "decoder-graph"}
    assert "decoder-graph" in built.ran
    assert tree(tmp_path / "ray") == tree(tmp_path / "one")
    assert build(config, Path("ray")).ran == ()


def test_each_worker_is_asked_for_its_free_memory(cluster: RayCluster) -> None:
    assert available_bytes() / 2 < cluster.memory_bytes < available_bytes() * 2


@pytest.mark.parametrize(
    ("has", "takes", "tasks"),
    [
        ({"CPU": 8.0}, {"num_cpus": 8, "num_gpus": 0}, 1),
        ({"CPU": 64.0}, {"num_cpus": 8, "num_gpus": 0}, 8),
        ({"CPU": 64.0, "GPU": 2.0}, {"num_cpus": 8, "num_gpus": 1}, 2),
        ({"CPU": 4.0}, {"num_cpus": 8, "num_gpus": 0}, 1),
    ],
)
def test_tasks_of_one_node_share_its_memory(has: dict[str, float], takes: dict[str, int], tasks: int) -> None:
    assert ray_cluster._tasks_at_once(has, takes) == tasks


def test_threads_are_compared_with_the_smallest_node() -> None:
    nodes = [
        {"Resources": {"CPU": cpus}, "NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1"}
        for name, cpus in (("large", 64.0), ("small", 8.0))
    ]
    for fitting in (None, ThreadCount(8, "--threads")):
        ray_cluster._require_cpus(nodes, fitting)
    with pytest.raises(UsageError) as refused:
        ray_cluster._require_cpus(nodes, ThreadCount(9, "--threads"))
    assert (refused.value.where, refused.value.found) == ("--threads", 9)
    assert refused.value.expected == "1 to 8 (CPUs of small, 10.0.0.1)"


def test_a_cluster_refuses_more_threads_than_its_nodes_have(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1v_export.cli.threads.available_cpus", lambda: ThreadCount(16, "CPU affinity"))
    try:
        assert main.run(["build", "--ray", address, "--threads", "2", "--dry-run", "-o", str(tmp_path / "out")]) == 2
    finally:
        use_threads(None)
    assert "expected: 1 to 1 (CPUs of " in capsys.readouterr().err


def test_what_does_not_fit_the_smallest_worker_is_refused_and_planned_so(
    address: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much memory this machine has, and the other way round: it does none of the work."""
    config = BuildConfig(model=str(tiny_model), parity=ParityConfig(questions=1))
    monkeypatch.setattr(ray_cluster, "_ask", lambda *asked: 1000)
    with pytest.raises(CapabilityError, match="parity gate does not fit into memory") as caught:
        build(config, tmp_path / "out", ray=address)
    assert caught.value.found == "1.0 kB on the cluster's smallest worker"
    monkeypatch.setattr(ray_cluster, "_ask", lambda *asked: 1 << 40)
    monkeypatch.setattr(gate_memory, "available_bytes", lambda: 1000)
    gate = next(stage for stage in plan(config, tmp_path / "out", ray=address) if stage.name == "onnxruntime-parity")
    assert gate.obstacle is None
    assert gate.note == "a task on one of 2 workers, with 1.1 TB free on the smallest"
    (gate,) = (stage for stage in plan(config, tmp_path / "out") if stage.name == "onnxruntime-parity")
    assert gate.obstacle is not None


def test_calibrate_runs_its_shards_on_a_cluster(
    address: str, tiny_model: Path, tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["calibrate", str(tiny_model), "--precision", "fp8", "--samples", "4", "--shards", "2"]
    assert main.run([*options, "-o", str(tmp_path / "one")]) == 0
    assert main.run([*options, "--ray", address, "-o", str(tmp_path / "ray")]) == 0
    assert tree(tmp_path / "ray") == tree(tmp_path / "one")
    assert main.run([*options, "--ray", address, "-o", str(tmp_path / "ray")]) == 0  # which is done already
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "ray"]


def test_an_error_of_a_task_names_the_worker(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        cluster.run([Task("refused", ray_tasks.refuse, (), tmp_path / "x")], ignore_progress)
    assert str(caught.value.where).startswith("sample 3, on worker ")
    assert (caught.value.expected, caught.value.found, caught.value.fix) == ("a", "b", "do not")
    with pytest.raises(R1VError, match="A task failed: broken") as failed:
        cluster.run([Task("broken", ray_tasks.fail, (), tmp_path / "x")], ignore_progress)
    assert failed.value.found == "ZeroDivisionError: a defect"


def test_run_leaves_the_results_of_other_tasks_for_next_done(cluster: RayCluster, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    cluster.submit(Task("before", ray_tasks.value, (1,), tmp_path / "before"))
    cluster.run(
        [Task(name, ray_tasks.value, (2,), tmp_path / name) for name in "ab"],
        lambda done, total, status="": seen.append((done, total)),
    )
    assert seen[-1] == (2, 2)
    assert max(done for done, _ in seen) <= 2
    task, done = cluster.next_done(lambda running: None)
    assert task.name == "before"
    assert isinstance(done, Done)
    assert done.value == 1


def test_a_task_whose_workers_die_again_and_again_is_an_error(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "MAX_RETRIES", 0)
    with pytest.raises(R1VError, match="its workers died") as caught:
        cluster.run([Task("doomed", ray_tasks.die, (), tmp_path / "x")], ignore_progress)
    assert caught.value.where == "doomed"


def test_a_worker_that_lacks_a_path_is_named_before_any_work(address: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(CapabilityError, match="does not see a path") as caught:
        refuse_cluster(address, tmp_path, [missing])
    assert str(caught.value.where).startswith("worker ")
    assert caught.value.expected == str(missing)


def test_a_worker_of_another_version_is_named_before_any_work(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray_cluster.code_and_tools()
    monkeypatch.setattr(ray_cluster, "code_and_tools", lambda: {**here, "torch": "1.0"})
    with pytest.raises(CapabilityError, match="other versions") as caught:
        refuse_cluster(address, tmp_path, [])
    assert (caught.value.expected, caught.value.found) == ("torch 1.0", f"torch {here['torch']}")


def test_a_cluster_without_gpus_is_refused_for_cuda(address: str, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="no worker for this"):
        refuse_cluster(address, tmp_path, [], "cuda")


@pytest.mark.parametrize("begin", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(begin: str) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    before = time.monotonic()
    with pytest.raises(CapabilityError, match=r"(?s)no such Ray cluster.*found: +Connection refused.*ray start --head"):
        ray_cluster._connect(f"{begin}127.0.0.1:{port}")
    assert time.monotonic() - before < 30


def test_an_address_that_is_empty_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)address of a Ray cluster is empty.*omit --ray"):
        refuse_cluster("", tmp_path, [])


def refuse_cluster(address: str, tmp_path: Path, reads: Sequence[Path], device: str = "cpu") -> None:
    with open_cluster(address, tmp_path / "ray", reads, device):  # type: ignore[arg-type]
        pytest.fail("this cluster cannot do the work")


def test_a_command_connects_to_a_cluster_and_its_interruption_ends_its_tasks(address: str, tmp_path: Path) -> None:
    """The last test on the cluster: it takes a connection of its own."""
    import ray

    ray.shutdown()
    before, seen = signal.getsignal(signal.SIGTERM), []

    def interrupt(done: float, total: float, status: str = "") -> None:
        seen.append((done, total))
        if done:
            raise KeyboardInterrupt

    def run_and_interrupt() -> None:
        with open_cluster(address, tmp_path / "ray", [tmp_path], "cpu") as cluster:
            assert signal.getsignal(signal.SIGTERM) == before
            cluster.run([Task("sleeper", ray_tasks.sleep, (tmp_path / "pid",), tmp_path / "x")], interrupt)

    with pytest.raises(KeyboardInterrupt):
        run_and_interrupt()
    assert seen[-1] == (0.5, 1)
    assert gone(int((tmp_path / "pid").read_text()))
    assert not ray.is_initialized()
    assert not (tmp_path / "ray").exists()


def gone(pid: int) -> bool:
    """Whether a process ends within a minute."""
    until = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_an_address_where_no_cluster_is_and_a_missing_ray_are_errors_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CapabilityError, match="no such Ray cluster"):
        refuse_cluster("no address", tmp_path, [])
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError) as caught:
        refuse_cluster("auto", tmp_path, [])
    assert "[build,ray]" in str(caught.value.fix)


def test_a_task_waits_for_the_lock_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "_LOCK_S", 0.0)
    with ray_worker._alone(tmp_path / "x"), pytest.raises(R1VError, match="still does this task") as caught:  # noqa: SIM117
        with ray_worker._alone(tmp_path / "x"):
            pytest.fail("two workers in one folder")
    assert str(os.getpid()) in str(caught.value.found)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--ray", "auto"], "in shards"),
        (["--ray", "auto", "--shards", "1"], "in shards"),
        (["--shard", "1/2", "--shards", "2"], "Cannot combine --shard and --shards"),
    ],
)
def test_calibrate_on_a_cluster_takes_shards(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["calibrate", "--precision", "fp8", *options, "-o", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
