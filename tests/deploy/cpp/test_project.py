"""What `deploy cpp` writes, built against an installed libr1v and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from r1v_export.bundle import Bundle
from r1v_export.cli.deploy import command
from r1v_export.deploy.cpp.project import write_project
from r1v_export.errors import UsageError
from r1v_export.runner.open_runner import open_runner
from tests.engines import programs
from tests.engines.conftest import ONNXRUNTIME

COUNT = programs.REPOSITORY / "examples/images/06-count.png"
QUESTION = "How many objects do you see?"


@pytest.mark.slow
def test_the_project_builds_against_an_installed_libr1v_and_answers_as_python_does(engines, nano_bundle, tmp_path):
    bundle, project, build = tmp_path / 'a "b"\\n ??/ 模型 7', tmp_path / "project", tmp_path / "build"
    shutil.copytree(nano_bundle, bundle, copy_function=os.link)
    write_project(Bundle.open(bundle), project)
    programs.run("cmake", "--install", engines, "--prefix", tmp_path / "prefix")
    programs.run("cmake", "-S", project, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    programs.run("cmake", "--build", build)

    def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in (build / "ask", *arguments)]
        return subprocess.run(
            words, env={"R1V_ONNXRUNTIME": str(ONNXRUNTIME)}, capture_output=True, text=True, check=False
        )

    expected = open_runner(nano_bundle, vision_target="onnxruntime").ask(QUESTION, COUNT)
    shown = f"<think>\n{expected.reasoning}\n</think>\n{expected.text}\n"
    for arguments in ((COUNT, QUESTION), (nano_bundle, COUNT, QUESTION)):
        ran = ask(*arguments)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, shown, "")
    for arguments, code, message in (
        ((QUESTION,), 2, "usage: ask [BUNDLE] IMAGE QUESTION"),
        ((tmp_path, COUNT, QUESTION), 1, str(tmp_path)),
        ((tmp_path / "none.png", QUESTION), 1, "none.png"),
    ):
        ran = ask(*arguments)
        assert (ran.returncode, ran.stdout) == (code, "")
        assert message in ran.stderr
    with Path("/dev/full").open("w") as full:
        words, environment = [build / "ask", COUNT, QUESTION], {"R1V_ONNXRUNTIME": str(ONNXRUNTIME)}
        assert subprocess.run(words, env=environment, stdout=full, stderr=subprocess.DEVNULL, check=False).returncode


def test_the_command_lists_what_it_wrote(nano_bundle, tmp_path):
    run = CliRunner().invoke(command, ["cpp", str(nano_bundle), "-o", str(tmp_path / "out"), "--format", "json"])
    assert sorted(json.loads(run.output)["files"]) == ["CMakeLists.txt", "README.md", "main.cpp"]
    for path in (tmp_path / "out").iterdir():
        text = path.read_text("utf-8")
        assert "@version@" not in text
        assert "@bundle@" not in text


def test_the_command_refuses_what_it_would_overwrite(nano_bundle, tmp_path):
    (tmp_path / "mine").write_text("x")
    run = CliRunner().invoke(command, ["cpp", str(nano_bundle), "-o", str(tmp_path)])
    assert isinstance(run.exception, UsageError)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("targets", "found"), [(("tensorrt", "gguf"), "tensorrt, gguf"), ((), "no engine")])
def test_a_bundle_that_libr1v_cannot_run_is_refused(nano_bundle, tmp_path, monkeypatch, targets, found):
    monkeypatch.setattr(Bundle, "targets", targets)
    with pytest.raises(UsageError) as raised:
        write_project(Bundle.open(nano_bundle), tmp_path / "out")
    assert (raised.value.expected, raised.value.found) == ("onnxruntime", found)
    assert "build MODEL --target onnxruntime" in raised.value.fix
    assert not (tmp_path / "out").exists()


def test_a_file_is_refused_as_the_folder(nano_bundle, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        write_project(Bundle.open(nano_bundle), tmp_path / "file")


def test_a_folder_inside_the_bundle_is_refused(nano_bundle):
    with pytest.raises(UsageError, match="inside the bundle"):
        write_project(Bundle.open(nano_bundle), nano_bundle / "engines" / "cpp")
    assert not (nano_bundle / "engines" / "cpp").exists()
