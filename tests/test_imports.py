"""The shape of the package: imports point upstream, files stay small, every module can be imported on its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import r1v_export

ROOT = Path(r1v_export.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
PROJECT = ROOT.parent

_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def test_imports_point_upstream_only() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_stay_below_400_lines_and_functions_below_50() -> None:
    long_files = {_name(path): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400}
    assert not long_files
    functions = ((path, node) for path in SOURCES for node in ast.walk(_tree(path)) if isinstance(node, _FUNCTIONS))
    long = {f"{_name(path)}: {node.name}": lines for path, node in functions if (lines := _code_lines(node)) > 50}
    assert not long


def test_nothing_of_the_run_time_needs_a_test_oracle() -> None:
    oracles = {"compressed_tensors", "transformers", "onnxruntime_genai", "pickle", "pytest"}
    # What lies in no package is written into checkpoints, for other runtimes, and never imported here.
    modules = [path for path in SOURCES if (path.parent / "__init__.py").is_file()]
    found = {_name(path): used for path in modules if (used := _imported(_tree(path)) & oracles)}
    assert not found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body after the docstring, decorators and signature not counted."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def _imported(tree: ast.Module) -> set[str]:
    """Top-level packages that a module imports."""
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_errors_config_and_contract_import_no_torch() -> None:
    modules = ", ".join(f"r1v_export.{name}" for name in ("errors", "contract", "config", "manifest"))
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
