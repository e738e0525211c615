"""A runtime-only installation answers as the full one does, and says what is missing for everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from packaging.requirements import Requirement as Requires

from r1v_export import build_extra
from r1v_export.errors import CapabilityError
from tests.runtime_environment import EXTRAS, PACKAGE, PROJECT, make_environment

IMAGE = PACKAGE.parent / "examples/images/06-count.png"
QUESTION = "How many objects do you see?"
INSTALL = f'pip install "{PACKAGE.parent}[build]"'

IN_FULL = """
import sys
sys.path.insert(0, sys.argv[1])
from r1v_export import build_extra
from r1v_export.cli.main import run
assert run(sys.argv[2:]) == 0
print("of the extra:", sorted(build_extra.MODULES & sys.modules.keys()), file=sys.stderr)
"""
"""Runs a command line where everything is installed, and says which modules of the extra it imported."""

Runs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python where only the runtime is installed: not even what `tokenizers` requires of the extra."""
    requirements = [*PROJECT["dependencies"], *EXTRAS["onnxruntime"], *EXTRAS["serve"]]
    return make_environment(tmp_path_factory.mktemp("environment") / "venv", requirements, EXTRAS["build"])


@pytest.fixture(scope="module")
def runtime(python: Path) -> Runs:
    """Runs it."""
    return lambda *arguments, **options: run_python(python, *arguments, **options)


def run_python(python: str | Path, *arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    words = [str(python), *map(str, arguments)]
    return subprocess.run(words, input=stdin, env=variables(), cwd="/", capture_output=True, text=True, check=False)


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def ask(run: Runs, *arguments: str | Path) -> dict[str, Any]:
    done = run("-m", "r1v_export.cli.main", *arguments, "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_same_tokens_as_in_the_full_installation(runtime: Runs, nano_bundle: Path) -> None:
    arguments = ("run", nano_bundle, "--image", IMAGE, QUESTION)
    full = run_python(sys.executable, "-c", IN_FULL, str(PACKAGE.parent), *arguments, "--format", "json")
    assert full.returncode == 0, full.stderr
    assert full.stderr.endswith("of the extra: []\n"), "what is installed is not imported either"
    expected, found = json.loads(full.stdout), ask(runtime, *arguments)
    assert found["token_ids"] == expected["token_ids"]
    assert len(found["token_ids"]) > 10
    assert found["text"] == expected["text"] == "3"


def test_a_conversation_is_held(runtime: Runs, nano_bundle: Path) -> None:
    lines = f"/image {IMAGE}\n{QUESTION}\nWhich shape is blue?\n"
    done = runtime("-m", "r1v_export.cli.main", "run", nano_bundle, "--chat", "--answer-only", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 2


def test_a_bundle_is_served(python: Path, nano_bundle: Path) -> None:
    words = [python, "-m", "r1v_export.cli.main", "serve", nano_bundle, "--port", "0", "--format", "json"]
    with subprocess.Popen(words, env=variables(), cwd="/", stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        facts = json.loads("".join(takewhile(lambda line: line != "}\n", server.stdout)) + "}")
        asked = {"model": facts["model"], "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        request = Request(f"{facts['url']}/v1/chat/completions", json.dumps(asked).encode(), headers)
        try:
            with urlopen(request, timeout=60) as response:
                answer = json.load(response)
        finally:
            server.terminate()
    assert answer["choices"][0]["message"]["content"]
    assert server.returncode == 0


def test_a_bundle_is_measured(runtime: Runs, nano_bundle: Path) -> None:
    measured = ask(runtime, "bench", nano_bundle, "--tokens", "4", "--runs", "1")
    assert measured["engine"] == "onnxruntime"
    assert measured["roofline"]["gpu"] is None


def test_the_machine_is_described(runtime: Runs) -> None:
    facts = ask(runtime, "doctor")
    assert facts["packages"]["torch"] is None
    assert facts["machine"]["builds"] is False
    assert facts["machine"]["builds_fix"].endswith(INSTALL)
    assert facts["targets"]["onnxruntime"]["ready"]
    assert facts["targets"]["tensorrt-llm"]["fix"] == INSTALL


def test_a_bundle_is_inspected(runtime: Runs, nano_bundle: Path) -> None:
    assert ask(runtime, "inspect", nano_bundle)["spec"]["language"]["num_layers"] == 4


BUNDLE = "BUNDLE"
COMPILING = {
    "build": (),
    "calibrate": ("--precision", "int8", "-o", "OUT"),
    "check": (BUNDLE,),
    "engine": (BUNDLE, "-o", "OUT"),
    "inspect": ("MODEL",),
    "merge-lora": ("MODEL", "-o", "OUT"),
    "recipes": ("list",),
    "synth": ("OUT",),
    "verify": (BUNDLE,),
    "run": (BUNDLE, "--target", "pytorch", "What?"),
    "run --verify": (BUNDLE, "What?"),
    "run --engine": ("llm-api", BUNDLE, "What?"),
    "bench": (BUNDLE, "--roofline", "L4"),
}
"""Command -> arguments."""


@pytest.mark.parametrize("command", COMPILING)
def test_what_needs_the_compiler_names_the_extra(
    command: str, runtime: Runs, nano_bundle: Path, tmp_path: Path
) -> None:
    places = {BUNDLE: nano_bundle, "OUT": tmp_path / "out", "MODEL": tmp_path}
    arguments = [places.get(argument, argument) for argument in COMPILING[command]]
    done = runtime("-m", "r1v_export.cli.main", *command.split(), *arguments)
    assert (done.returncode, done.stdout) == (CapabilityError.exit_code, ""), done.stdout + done.stderr
    assert "error: This needs packages" in done.stderr
    assert INSTALL in done.stderr
    assert "Traceback" not in done.stderr


def test_python_gets_the_same_error(runtime: Runs, nano_bundle: Path, tmp_path: Path) -> None:
    calls = (f"build(out={str(tmp_path / 'out')!r})", f"check({str(nano_bundle)!r})", f"verify({str(nano_bundle)!r})")
    for call in calls:
        code = f"import r1v_export as r\ntry: r.{call}\nexcept r.CapabilityError as error: print(error.fix)"
        done = runtime("-c", code)
        assert done.stdout.strip() == INSTALL, done.stderr


def test_the_modules_are_those_of_the_extra() -> None:
    modules = {"pyyaml": "yaml"}
    names = (Requires(text).name for text in EXTRAS["build"])
    assert {modules.get(name, name.replace("-", "_")) for name in names} == build_extra.MODULES


@pytest.mark.parametrize("module", ["torch", "torch.nn"])
def test_a_missing_module_of_the_extra_is_a_missing_extra(module: str) -> None:
    with pytest.raises(CapabilityError, match="no torch"), build_extra.required():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def test_another_missing_module_stays_what_it_is() -> None:
    with pytest.raises(ModuleNotFoundError), build_extra.required():
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")


def test_the_extra_is_installed_here() -> None:
    build_extra.require()
