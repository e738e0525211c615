"""Nothing outside targets/ names a target: it asks the registry, so a target of another package is an equal."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import r1v_export
from r1v_export.targets import registry
from r1v_export.targets.entry_points import names

ROOT = Path(r1v_export.__file__).parent
TARGETS = ROOT / "targets"
FOLDERS = sorted(path.name for path in TARGETS.iterdir() if (path / "target.py").is_file())
OUTSIDE = sorted(path for path in ROOT.rglob("*.py") if TARGETS not in path.parents)

EXCEPTIONS = {
    "checkpoint/gguf/open_gguf.py": "gguf is also the package that reads such files",
    "checkpoint/quantized/compressed_tensors.py": "compressed-tensors is also what checkpoints call their format",
}
"""File -> why it may name a target."""

_NAME = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, [*names(), *FOLDERS]))})(?![\w.-])")


def named_in(source: str) -> list[str]:
    """Lines of a module that say a target's name in a string that is not a docstring, or import a target's folder."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found += [f"{node.lineno}: {node.value!r}"] if _NAME.search(node.value) else []
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        found += [f"{node.lineno}: import {module}" for module in modules if _is_of_a_target(module)]
    return found


def _is_of_a_target(module: str) -> bool:
    parts = module.split(".")
    return parts[:2] == ["r1v_export", "targets"] and len(parts) > 2 and parts[2] in FOLDERS


def test_the_search_finds_names_and_imports() -> None:
    assert named_in('x = f"--target onnxruntime"')
    assert named_in('x = {"tensorrt-rtx": 1}')
    assert named_in("from r1v_export.targets.hf_unified.target import HfUnifiedTarget")
    assert named_in("from r1v_export.targets import tensorrt_llm")
    assert not named_in('"""About onnxruntime."""\nfrom r1v_export.targets import registry\nx = "onnxruntime_genai"')


def test_no_file_outside_targets_names_a_target() -> None:
    found = {path.relative_to(ROOT).as_posix(): lines for path in OUTSIDE if (lines := named_in(path.read_text()))}
    assert {name: lines for name, lines in found.items() if name not in EXCEPTIONS} == {}
    assert EXCEPTIONS.keys() <= found.keys(), "an exception that is not needed"


def test_the_folders_of_targets_are_laid_out_alike() -> None:
    assert {registry.get_target(name).__module__.split(".")[2] for name in names()} == set(FOLDERS)
    for folder in (TARGETS / name for name in FOLDERS):
        parts = {path.stem for path in folder.iterdir()}
        assert {"target", "config", "doctor", "runtime"} <= parts, folder.name
        assert parts & {"build", "write"}, folder.name
