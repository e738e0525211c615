"""A build as a whole: what it writes, what it runs again, and what it refuses."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from r1v_export import hashed_reads
from r1v_export.build_file import load_config
from r1v_export.bundle import Bundle
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.locate_checkpoint import open_source
from r1v_export.config import BuildConfig, ParityConfig
from r1v_export.errors import BundleError, CapabilityError, CheckpointError, ParityError, UsageError
from r1v_export.hashed_files import HashedFile
from r1v_export.manifest import MANIFEST, PASSED, read_manifest, verify
from r1v_export.parity.schema import ParityReport
from r1v_export.pipeline import build as build_module
from r1v_export.pipeline.build import build, plan
from r1v_export.pipeline.parity_gate import candidate_endpoint, reference_endpoint
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.progress import Progress
from r1v_export.serialized.pipeline import EngineDocument

Tree = Callable[[Path], dict[str, bytes]]
GRAPHS = [f"graphs/{name}.{kind}" for name in ("decoder", "embed", "projector", "vision") for kind in ("data", "onnx")]


def test_a_bundle_holds_graphs_engines_tokenizer_and_report(nano_bundle: Path, tree: Tree) -> None:
    files = tree(nano_bundle).keys()
    wanted = {"manifest.json", "build.yaml", "model.json", "config.json", "tokenizer.json", *GRAPHS}
    assert wanted | {"report/parity.json", "report/parity.html"} <= files
    assert {path.split("/")[0] for path in files} == {path.split("/")[0] for path in wanted} | {"engines", "report"} | {
        path for path in files if "/" not in path
    }


def test_the_manifest_vouches_for_every_file(nano_bundle: Path, tree: Tree) -> None:
    manifest = verify(nano_bundle)
    assert manifest.files.keys() | {MANIFEST} == tree(nano_bundle).keys()
    assert (manifest.source.kind, manifest.source.name) == ("builtin", "r1v-nano")
    assert manifest.parity == {"onnxruntime": PASSED}
    assert manifest.tools.keys() >= {"python", "torch", "onnx", "onnxruntime", "r1v-export"}


def test_the_report_in_the_bundle_passed_with_all_tokens_the_same(nano_bundle: Path) -> None:
    report = ParityReport.model_validate_json((nano_bundle / "report/parity.json").read_bytes())
    assert report.passed
    assert [sample.name for sample in report.samples if sample.divergence] == []
    assert report.boundary("prefill").metrics["max_abs_error"] < 1e-3


def test_no_file_of_a_bundle_names_a_path_of_this_machine(nano_bundle: Path, tiny_built: Path, tree: Tree) -> None:
    places = [str(folder).encode() for folder in (nano_bundle.parent, tiny_built.parent, Path.home(), Path.cwd())]
    for bundle in (nano_bundle, tiny_built):
        for path, content in tree(bundle).items():
            assert not [place for place in places if len(place) > 5 and place in content], path


def test_a_second_build_has_nothing_to_do(tiny_bundle: Path, tiny_config: BuildConfig, tree: Tree) -> None:
    before = tree(tiny_bundle)
    assert build(tiny_config, tiny_bundle).ran == ()
    assert tree(tiny_bundle) == before


def test_the_saved_config_builds_the_same_again(
    tiny_bundle: Path, tiny_model: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    config = load_config(tiny_bundle / "build.yaml", {})
    assert (config.model, build(config, tiny_bundle).ran) == ("tiny-model", ())


def test_a_damaged_file_is_made_again_and_nothing_else(tiny_bundle: Path, tiny_config: BuildConfig, tree: Tree) -> None:
    before = tree(tiny_bundle)
    with (tiny_bundle / "graphs/projector.data").open("r+b") as file:
        file.write(b"\xff")
    assert build(tiny_config, tiny_bundle).ran == ("projector-graph",), "same bytes again: the engine need not be"
    assert tree(tiny_bundle) == before


def test_another_precision_makes_graphs_and_engine_again(tiny_bundle: Path, tiny_config: BuildConfig) -> None:
    planned = plan(tiny_config.model_copy(update={"precision": "fp16"}), tiny_bundle)
    assert [stage.name for stage in planned if stage.done] == ["model-files"]


def test_another_gate_runs_again_and_the_engine_is_kept(tiny_bundle: Path, tiny_config: BuildConfig) -> None:
    config = tiny_config.model_copy(update={"parity": ParityConfig(questions=1, max_new_tokens=2)})
    assert build(config, tiny_bundle).ran == ("documents", "onnxruntime-parity")


def test_a_plan_changes_nothing_and_knows_what_is_done(
    tiny_bundle: Path, tiny_config: BuildConfig, tmp_path: Path, tree: Tree
) -> None:
    before = tree(tiny_bundle)
    assert all(stage.done for stage in plan(tiny_config, tiny_bundle))
    assert not any(stage.done for stage in plan(tiny_config, tiny_bundle, force=True))
    new = plan(tiny_config, tmp_path / "new")
    assert not any(stage.done for stage in new)
    graphs_bytes = sum(len(content) for path, content in before.items() if path.endswith(".data"))
    assert sum(stage.size_bytes for stage in new) == pytest.approx(graphs_bytes, rel=0.05)
    assert tree(tiny_bundle) == before
    assert not (tmp_path / "new").exists()


def test_an_engine_that_leaves_its_tolerance_fails_the_build_and_the_report_is_kept(
    tiny_config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from r1v_export.exporters import export

    def export_wrongly(name: str, checkpoint: Any, folder: Path, *args: Any) -> Path:
        path = export_graph(name, checkpoint, folder, *args)
        if name == "projector":
            weights = np.memmap(path.with_suffix(".data"), dtype=np.float32, mode="r+")
            weights *= 1.01
            weights.flush()
        return path

    export_graph = export.export_graph
    monkeypatch.setattr(export, "export_graph", export_wrongly)
    config = tiny_config.model_copy(update={"parity": ParityConfig(questions=1, max_new_tokens=2)})
    with pytest.raises(ParityError, match="projector") as caught:
        build(config, tmp_path / "out")
    kept = tmp_path / "out/report/local"
    assert str(kept / "parity.html") in (caught.value.fix or "")
    assert not ParityReport.model_validate_json((kept / "parity.json").read_bytes()).passed
    with pytest.raises(BundleError, match="not finished"):
        read_manifest(tmp_path / "out")


def test_a_checkpoint_that_changes_under_the_build_makes_no_bundle(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from r1v_export.exporters import export

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))

    def export_and_change(name: str, checkpoint: Any, folder: Path, *args: Any) -> Path:
        (folder / f"{name}.onnx").write_text("")
        (model / "generation_config.json").write_text("{}")
        return folder

    monkeypatch.setattr(export, "export_graph", export_and_change)
    target = "r1v_export.targets.onnxruntime.target.OnnxRuntimeTarget"
    monkeypatch.setattr(f"{target}.build", lambda *args: None)
    monkeypatch.setattr(f"{target}.engine_document", lambda *args: EngineDocument(files={}, options={}))
    config = BuildConfig(model=str(model), parity=ParityConfig(enabled=False))
    with pytest.raises(CheckpointError, match="changed while") as caught:
        build(config, tmp_path / "out")
    assert "generation_config.json" in str(caught.value.found)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_disk_without_room_is_said_before_a_stage_runs(
    tiny_config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 0, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CapabilityError, match="disk is too small"):
        build(tiny_config, tmp_path / "out")
    assert not (tmp_path / "out/graphs").exists()


def test_a_reference_that_does_not_fit_into_memory_is_said_before_a_stage_runs(
    tiny_config: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = namedtuple("memory", "available")(10**6)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    config = tiny_config.model_copy(update={"parity": ParityConfig()})
    with pytest.raises(CapabilityError, match="--no-parity"):
        build(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"precision": "int4", "recipe": "no-such"}, UsageError),
        ({"precision": "bf16"}, CapabilityError),
        ({"targets": {"tensorrt-9": {}}}, UsageError),
        ({"device": "cuda"}, CapabilityError),
    ],
)
def test_what_cannot_be_built_is_said_before_the_checkpoint_is_looked_for(
    changes: dict[str, Any], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes.get("device") == "cuda":
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(error):
        build(BuildConfig(model="no/such-model", **changes), tmp_path / "out", offline=True)
    assert not (tmp_path / "out").exists()


def test_a_broken_checkpoint_is_said_before_a_folder_is_made(tiny_model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        build(BuildConfig(model=str(broken)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_graph_that_left_the_contract_does_not_verify(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_bundle(tiny_bundle, Progress(quiet=True))
    swapped = tiny_bundle / "graphs/vision.onnx"
    swapped.write_bytes((tiny_bundle / "graphs/projector.onnx").read_bytes())
    monkeypatch.setattr("r1v_export.pipeline.verify.verify", lambda folder, on_progress: read_manifest(folder))
    with pytest.raises(Exception, match="contract"):
        verify_bundle(tiny_bundle, Progress(quiet=True))


def test_the_checkpoint_of_a_bundle_is_found_again_only_if_it_is_the_same(
    tiny_built: Path, tiny_model: Path, nano_bundle: Path, tmp_path: Path
) -> None:
    quiet = Progress(quiet=True)
    assert open_source(Bundle.open(nano_bundle), None, quiet).source.kind == "builtin"
    bundle = Bundle.open(tiny_built)
    assert open_source(bundle, str(tiny_model), quiet).folder == tiny_model
    with pytest.raises(UsageError, match="--model"):
        open_source(bundle, None, quiet)
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    config = yaml.safe_load((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps({**config, "max_new_tokens": 1}))
    with pytest.raises(UsageError, match="not the checkpoint"):
        open_source(bundle, str(other), quiet)


def test_two_targets_have_a_report_each(tiny_config: BuildConfig, tmp_path: Path) -> None:
    two = tiny_config.model_copy(update={"targets": {"onnxruntime": {}, "other": {}}})
    job = build_module.Build(two, None, tmp_path)  # type: ignore[arg-type]
    assert job.report_folder("other").as_posix() == "report/other"
    one = tiny_config.model_copy(update={"targets": {"other": {}}})
    job = build_module.Build(one, None, tmp_path)  # type: ignore[arg-type]
    assert job.report_folder("onnxruntime").as_posix() == "report"


def test_both_sides_of_the_gate_stop_where_generation_config_says(nano_bundle: Path) -> None:
    checkpoint = Checkpoint.open(None)
    sides = reference_endpoint(checkpoint, "cpu"), candidate_endpoint(nano_bundle, "onnxruntime", "cpu")
    for side in sides:
        assert set(checkpoint.generation_config["eos_token_id"]) <= side.stop_ids


def test_a_float16_build_passes_its_gate_and_onnxruntime_finds_nothing_to_warn_of(
    tiny_config: BuildConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config.model_copy(update={"precision": "fp16", "parity": ParityConfig(questions=1, max_new_tokens=2)})
    assert build(config, tmp_path / "out").manifest.parity == {"onnxruntime": PASSED}
    assert "onnxruntime:" not in capfd.readouterr().err


@pytest.mark.parametrize("target", ["onnxruntime", "hf-unified"])
def test_a_disk_that_fills_up_in_the_middle_of_a_stage_is_named_and_the_build_resumes(
    target: str, tiny_config: BuildConfig, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"precision": "int4", "recipe": "int4-rtn", "targets": {target: {}}}
    config, out = BuildConfig.model_validate(tiny_config.model_dump() | recipe), tmp_path / "out"
    expected = tree(build(config, tmp_path / "undisturbed").out)
    write, left = HashedFile.write, 0

    def full(file: HashedFile, data: bytes) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    for writes in (0, 3, 12):
        with monkeypatch.context() as patch:
            patch.setattr(HashedFile, "write", full)
            left = writes
            with pytest.raises(CapabilityError, match="disk is full") as caught:
                build(config, out)
        assert ".work" in str(caught.value.where)
        assert "run the same command again" in str(caught.value.fix)
    assert tree(build(config, out).out) == expected


class _Flaky(io.FileIO):
    """A file of which 1,000 bytes can be read."""

    def __init__(self, path: Path, at_end: OSError | None) -> None:
        super().__init__(path)
        self.at_end = at_end

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(memoryview(buffer)[: max(0, 1000 - self.tell())])
        if not count and self.at_end:
            raise self.at_end
        return count


@pytest.mark.parametrize(
    ("at_end", "found"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error, at byte 1000 of"),
        (None, "it ends at byte 1000 of"),
    ],
    ids=["input-output-error", "short-read"],
)
def test_a_source_file_that_cannot_be_read_to_its_end_is_named_and_the_build_resumes(
    at_end: OSError | None,
    found: str,
    tiny_config: BuildConfig,
    tiny_built: Path,
    tmp_path: Path,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, open_regular, out = list[Path](), hashed_reads.open_regular, tmp_path / "out"
    weights, damaged = (Path(tiny_config.model, name) for name in ("model.safetensors", "tokenizer.json"))

    def flaky(path: Path) -> Any:
        opened.append(path)
        return _Flaky(path, at_end) if path == damaged else open_regular(path)

    with monkeypatch.context() as patch:
        patch.setattr(hashed_reads, "open_regular", flaky)
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            build(tiny_config, out)
    assert caught.value.where == str(damaged)
    assert str(caught.value.found).startswith(found)
    assert "resumes" in str(caught.value.fix)
    before, opened = opened, []
    with monkeypatch.context() as patch:
        patch.setattr(hashed_reads, "open_regular", lambda path: opened.append(path) or open_regular(path))
        assert build(tiny_config, out).ran == (), "what stages ran is known by what stat says of the sources"
    assert weights in before
    assert weights not in opened, "its hash is known from before"
    assert tree(out) == tree(tiny_built)
