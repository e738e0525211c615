"""The public face: complete, instant to import, typed for a user's mypy, and all that README and examples need."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import r1v_export

PROJECT = Path(__file__).parents[1]

USER = """
from pathlib import Path

import r1v_export
from r1v_export import Answer, BuildConfig, Bundle, Manifest, ParityReport, R1VError, Request, Sampling, Turn
from r1v_export import load_image


def main() -> int:
    bundle: Bundle = r1v_export.build("r1v-nano", precision="fp8", targets=["onnxruntime"], out=Path("out"))
    runner = r1v_export.open_runner(bundle)
    answer: Answer = runner.ask("What?", "a.png", sampling=Sampling(max_new_tokens=3))
    request = Request((Turn("user", "What?", images=1),), (load_image("a.png"),))
    texts: list[str] = [found.text for found in runner.answers([request])]
    reports: list[ParityReport] = r1v_export.check("out", questions=2)
    manifest: Manifest = r1v_export.verify(Path("out"))
    config = BuildConfig(precision="int4")
    try:
        r1v_export.build(config=config, out="out")
    except R1VError as error:
        print(error.what, error.fix, manifest.precision, texts, answer.text)
        return error.exit_code
    return 0 if all(report.passed for report in reports) else 1
"""

WRONG = """import r1v_export
r1v_export.build("r1v-nano", precision="fp7", out="out")
r1v_export.verify(3)
"""


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(r1v_export, name) is not None for name in r1v_export.__all__)
    assert sorted(r1v_export.__all__, key=str) == sorted(set(r1v_export.__all__))
    assert set(r1v_export.__all__) <= set(dir(r1v_export))
    with pytest.raises(AttributeError, match="no attribute 'Builder'"):
        _ = r1v_export.Builder


def test_every_error_is_public() -> None:
    from r1v_export import errors

    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined <= set(r1v_export.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    assert f'\nversion = "{r1v_export.__version__}"\n' in (PROJECT / "pyproject.toml").read_text()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, r1v_export, r1v_export as r; r.UsageError; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert not {"torch", "numpy", "pydantic", "onnx", "onnxruntime", "PIL", "yaml"} & set(done.stdout.split())


@pytest.fixture(scope="module")
def mypy_errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What a user's strict mypy finds in a program that uses the face rightly and in one that does not, by file.

    It passes over what no type of the face is made of and most users lack, six sevenths of its time.
    """
    folder = tmp_path_factory.mktemp("user")
    (folder / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,transformers.*,ray.*]\nfollow_imports = skip\n")
    (folder / "right.py").write_text(USER)
    (folder / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    command += ["--config-file=mypy.ini", f"--cache-dir={os.devnull}", "right.py", "wrong.py"]
    environment = {"MYPYPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    *errors, summary = done.stdout.splitlines()
    assert re.fullmatch(r"Found \d+ errors? in 1 file \(checked 2 source files\)", summary), done.stdout + done.stderr
    return {name: [line for line in errors if line.startswith(name)] for name in ("right.py", "wrong.py")}


def test_the_face_is_typed_for_a_users_strict_mypy(mypy_errors: dict[str, list[str]]) -> None:
    assert mypy_errors["right.py"] == []


def test_a_wrong_use_of_the_face_is_found_by_mypy(mypy_errors: dict[str, list[str]]) -> None:
    errors = "\n".join(mypy_errors["wrong.py"])
    assert re.findall(r"wrong\.py:(\d+): error", errors) == ["2", "3"], errors


def _imports(code: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def test_readme_docs_and_examples_import_the_face_only() -> None:
    texts = [(PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/api.md")]
    blocks = [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) >= 2
    sources = [*blocks, *(path.read_text(encoding="utf-8") for path in (PROJECT / "examples").glob("*.py"))]
    ours = {name for code in sources for name in _imports(code) if name.startswith("r1v_export")}
    assert ours == {"r1v_export"}


def test_settings_of_a_config_are_kept_and_arguments_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from r1v_export import api
    from r1v_export.build_file import config_yaml
    from r1v_export.config import ParityConfig

    seen = []

    def remember(config: r1v_export.BuildConfig, out: Path, **options: object) -> SimpleNamespace:
        seen.append(config)
        return SimpleNamespace(out=out)

    monkeypatch.setattr("r1v_export.pipeline.build.build", remember)
    monkeypatch.setattr(api, "open_bundle", lambda path: path)
    config = r1v_export.BuildConfig(precision="bf16", parity=ParityConfig(questions=3))
    (tmp_path / "build.yaml").write_text(config_yaml(config))
    for given in (config, tmp_path / "build.yaml", str(tmp_path / "build.yaml")):
        assert r1v_export.build("a/b", out=str(tmp_path), config=given, device="cuda") == tmp_path
    assert [(c.model, c.precision, c.device, c.parity.questions) for c in seen] == [("a/b", "bf16", "cuda", 3)] * 3


def test_a_bundle_is_opened_asked_and_verified_by_the_face(nano_bundle: Path) -> None:
    bundle = r1v_export.open_bundle(str(nano_bundle))
    image = PROJECT / "examples" / "images" / "05-chart.png"
    answers = [
        r1v_export.open_runner(source).ask("How tall is the green bar?", image_source)
        for source, image_source in ((bundle, str(image)), (str(nano_bundle), r1v_export.load_image(image)))
    ]
    assert answers[0].text == answers[1].text != ""
    assert r1v_export.verify(bundle) == bundle.manifest
