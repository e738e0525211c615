"""What `deploy triton` writes, read by others: Triton's protobuf, Helm, and Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from r1v_export.bundle import Bundle
from r1v_export.cli.deploy import command
from r1v_export.deploy.triton.repository import MODELS_FOLDER, TritonOptions, model_configs, write_repository
from r1v_export.deploy.triton.tensors import LLM, MODELS, VISION
from r1v_export.errors import UsageError
from tests.deploy.triton.tritonserver import ENVIRONMENT, installed

PARSE = """
import json, sys
from pathlib import Path
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

print(json.dumps({
    path.parent.name: json_format.MessageToDict(text_format.Parse(path.read_text(), ModelConfig()))
    for path in Path(sys.argv[1]).glob("*/config.pbtxt")
}))
"""


@pytest.mark.triton
@pytest.mark.skipif(not installed(), reason="no tritonclient: `make test` installs it")
def test_triton_s_own_protobuf_reads_the_configurations(deployment, nano_bundle):
    python = ENVIRONMENT / "bin" / "python"
    run = subprocess.run([python, "-c", PARSE, deployment / MODELS_FOLDER], capture_output=True, text=True, check=True)
    configs = json.loads(run.stdout)
    assert configs.keys() == set(MODELS)
    sizes = Bundle.open(nano_bundle).contract.sizes
    (pixels,), (embeds,) = configs[VISION]["input"], configs[VISION]["output"]
    assert [int(size) for size in pixels["dims"]] == [3, sizes.tile_size, sizes.tile_size]
    assert [int(size) for size in embeds["dims"]] == [sizes.tokens_per_tile, sizes.hidden]
    assert configs[LLM]["modelTransactionPolicy"] == {"decoupled": True}


def test_every_target_has_the_same_models_and_tensors(nano_bundle):
    bundle = Bundle.open(nano_bundle)
    cpu, gpu = (
        [(each.name, each.inputs, each.outputs) for each in model_configs(bundle, TritonOptions(device=device), target)]
        for device, target in (("cpu", "onnxruntime"), ("cuda", "tensorrt"))
    )
    assert cpu == gpu


def test_what_encodes_images_is_said_to_the_model_that_does(nano_bundle):
    bundle = Bundle.open(nano_bundle)
    python = model_configs(bundle, TritonOptions(vision_target="onnxruntime"), "onnxruntime")
    assert {each.name: each.parameters.get("vision_target") for each in python} == {
        name: "onnxruntime" if name == VISION else None for name in MODELS
    }
    (cpp,) = model_configs(bundle, TritonOptions(backend="r1v"), "onnxruntime")
    assert cpp.parameters["vision_target"] == "auto"


def test_the_command_passes_on_what_encodes_images_and_the_image_has_its_library(nano_bundle, tmp_path):
    for asked, extras in (("onnxruntime", "onnxruntime"), ("openvino", "onnxruntime,openvino")):
        arguments = ["triton", str(nano_bundle), "-o", str(tmp_path / asked), "--vision-target", asked]
        assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
        config = (tmp_path / asked / MODELS_FOLDER / VISION / "config.pbtxt").read_text()
        assert f'parameters {{ key: "vision_target"  value {{ string_value: "{asked}" }} }}' in config
        assert f"[{extras}]" in (tmp_path / asked / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TritonOptions(vision_target="gguf"), "Nothing in the bundle encodes images"),
        (TritonOptions(vision_target="openvino", backend="r1v"), "libr1v encodes images by the target that answers"),
        (TritonOptions(vision_target="onnxruntime", engine="llm-api"), "encodes images itself"),
    ],
    ids=["unknown", "libr1v", "library"],
)
def test_what_cannot_encode_images_is_refused_and_nothing_written(nano_bundle, tmp_path, options, message, monkeypatch):
    monkeypatch.setattr("r1v_export.deploy.triton.repository._target", lambda *_: ("onnxruntime", 0))
    with pytest.raises(UsageError, match=message):
        write_repository(Bundle.open(nano_bundle), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_the_backend_in_cpp_has_the_same_model_r1v_and_no_other(nano_bundle, tmp_path):
    bundle = Bundle.open(nano_bundle)
    python, *_ = model_configs(bundle, TritonOptions(), bundle.targets[0])
    (cpp,) = model_configs(bundle, TritonOptions(backend="r1v", preprocessors=3), bundle.targets[0])
    for field in ("name", "inputs", "outputs", "max_batch_size", "decoupled"):
        assert getattr(cpp, field) == getattr(python, field)
    assert (cpp.backend, cpp.instances) == ("r1v", 3)
    write_repository(bundle, tmp_path / "out", TritonOptions(backend="r1v"))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "bundle" not in path.parts]
    assert [path.name for path in files if path.suffix == ".py"] == ["probe.py"]
    assert not [path for path in files if "@" in path.read_text("utf-8")]
    (compose,) = [path for path in files if path.name == "compose.yaml"]
    assert "shm_size" not in yaml.safe_load(compose.read_text())["services"]["triton"]


@pytest.mark.parametrize("options", [("--tiles", "4"), ("--engine", "llm-api")])
def test_options_that_libr1v_has_no_use_for_are_refused(nano_bundle, tmp_path, options):
    arguments = ["triton", str(nano_bundle), "-o", str(tmp_path / "out"), "--backend", "r1v", *options]
    run = CliRunner().invoke(command, arguments)
    assert isinstance(run.exception, UsageError)
    assert options[0] in str(run.exception)
    assert not (tmp_path / "out").exists()


def test_targets_that_libr1v_does_not_run_are_refused(nano_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(Bundle, "targets", ("tensorrt",))
    with pytest.raises(UsageError, match="libr1v runs no engine"):
        write_repository(Bundle.open(nano_bundle), tmp_path / "out", TritonOptions(backend="r1v"))


HELM = """
import json, sys
import helm_python
report = helm_python.lint(sys.argv[1], strict=True)
chart = helm_python.Chart.load(sys.argv[1])
print(json.dumps([report, [dict(chart.render({"gpus": gpus}, name="r1v")) for gpus in (0, 1)]]))
"""
"""In a process of its own: Go's runtime takes over handlers of signals, and next to OpenVINO and pytest's fault handler
it ended in a segmentation fault."""


def test_helm_finds_nothing_to_object_to(deployment):
    printed = subprocess.check_output([sys.executable, "-c", HELM, str(deployment / "chart")])
    report, rendered = json.loads(printed)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    for gpus, manifests in enumerate(rendered):
        (deployed,) = [text for path, text in manifests.items() if path.endswith("deployment.yaml")]
        container = yaml.safe_load(deployed)["spec"]["template"]["spec"]["containers"][0]
        assert ("limits" in container["resources"]) == bool(gpus)
        assert container["livenessProbe"]["exec"]["command"] == ["python3", "/deployment/probe.py"]


def test_the_image_installs_what_the_engine_takes_and_no_compiler(nano_bundle, tmp_path):
    for device, extra in (("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu")):
        out = tmp_path / device
        write_repository(Bundle.open(nano_bundle), out, TritonOptions(device=device))
        assert f".whl[{extra}]" in (out / "Dockerfile").read_text("utf-8")


def test_the_compose_file_gives_shared_memory(deployment):
    service = yaml.safe_load((deployment / "compose.yaml").read_text())["services"]["triton"]
    assert service["shm_size"] == "2gb"


def test_every_file_is_complete(deployment):
    files = [path for path in deployment.rglob("*") if path.is_file() and not {"bundle", "__pycache__"} & {*path.parts}]
    assert len(files) == 2 * len(MODELS) + 8
    for path in files:
        text = path.read_text("utf-8")
        assert "@version@" not in text
        if path.suffix == ".py":
            compile(text, path, "exec")


def test_the_bundle_takes_no_further_room(deployment, nano_bundle):
    largest = max(nano_bundle.rglob("*.data"), key=lambda path: path.stat().st_size)
    assert largest.samefile(deployment / "bundle" / largest.relative_to(nano_bundle))


def test_the_command_refuses_what_it_would_overwrite_and_engines_that_are_not_there(nano_bundle, tmp_path):
    (tmp_path / "mine").write_text("x")
    run = CliRunner().invoke(command, ["triton", str(nano_bundle), "-o", str(tmp_path)])
    assert isinstance(run.exception, UsageError)
    assert (tmp_path / "mine").read_text() == "x"
    run = CliRunner().invoke(command, ["triton", str(nano_bundle), "-o", str(tmp_path / "new"), "--target", "tensorrt"])
    assert isinstance(run.exception, UsageError)
    assert not (tmp_path / "new").exists()


def test_the_command_lists_what_it_wrote(nano_bundle, tmp_path):
    run = CliRunner().invoke(command, ["triton", str(nano_bundle), "-o", str(tmp_path / "out"), "--format", "json"])
    files = json.loads(run.output)["files"]
    assert [Path(name) for name in files if not (tmp_path / "out" / name).is_file()] == []
