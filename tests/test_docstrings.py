"""Public functions, classes and methods have a summary, the shapes of their tensors and the errors they raise."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import r1v_export
from r1v_export.errors import R1VError

ROOT = Path(r1v_export.__file__).parent
OF_CHECKPOINTS = (ROOT / "checkpoint" / "hub_code", ROOT / "nano" / "model")
"""Python files that ship in checkpoints, for transformers: no modules of the package."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes):")
_TENSOR = re.compile(r"(torch\.Tensor|Tensor|np\.ndarray|(npt\.)?NDArray\[.*\])( \| None)?")
_AXES = re.compile(r"_[A-Z0-9]+$")
_SHAPE = re.compile(r"\[[^\]\n]*\]")


class Documented(NamedTuple):
    """A public definition with the class around it, if any."""

    where: str
    node: ast.ClassDef | _Function
    owner: type | None
    owner_node: ast.ClassDef | None

    @property
    def text(self) -> str:
        """Its own docstring, or that of the method which it overrides or implements."""
        return ast.get_docstring(self.node) or self.inherited

    @property
    def inherited(self) -> str:
        if self.owner is None or isinstance(self.node, ast.ClassDef):
            return ""
        bases = (*self.owner.__mro__[1:], *(protocol for protocol in _protocols() if _implements(self.owner, protocol)))
        documented = (vars(base)[self.node.name] for base in bases if self.node.name in vars(base))
        return next((found.__doc__ for found in documented if found.__doc__), "")


def test_public_docstrings_begin_with_a_summary_line() -> None:
    missing = [each.where for each in _public() if not _has_summary(each.text)]
    assert not missing


def test_public_functions_that_take_tensors_give_their_shapes() -> None:
    without = []
    for each in _public():
        if isinstance(each.node, ast.ClassDef) or not (names := _tensor_parameters(each.node)):
            continue
        around = ast.get_docstring(each.owner_node) if each.owner_node and each.node.name == "forward" else ""
        if not all(map(_AXES.search, names)) and not _SHAPE.search(f"{each.text} {around}"):
            without.append(f"{each.where}: {', '.join(names)}")
    assert not without


def test_public_functions_name_the_errors_that_they_raise() -> None:
    unnamed = []
    for each in _public():
        if isinstance(each.node, ast.ClassDef):
            continue
        section = each.text.partition("Raises:")[2] + each.inherited.partition("Raises:")[2]
        if missing := {name for name in _raised(each.node) if name not in section}:
            unnamed.append(f"{each.where}: {', '.join(sorted(missing))}")
    assert not unnamed


def _has_summary(text: str) -> bool:
    first = text.strip().partition("\n")[0]
    return bool(first) and not _SECTION.match(first)


def _public() -> Iterator[Documented]:
    for path, module in _modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | _Function) or node.name.startswith("_"):
                continue
            where = f"{path.relative_to(ROOT.parent)}:{node.name}"
            yield Documented(where, node, None, None)
            if isinstance(node, ast.ClassDef):
                owner = getattr(module, node.name)
                for member in node.body:
                    if isinstance(member, _Function) and not member.name.startswith("_"):
                        yield Documented(f"{where}.{member.name}", member, owner, node)


@functools.cache
def _protocols() -> tuple[type, ...]:
    """The package's protocols: what implements all of one's members need not document them again."""
    classes = (value for _, module in _modules() for value in vars(module).values() if inspect.isclass(value))
    return tuple({each: None for each in classes if each.__module__.startswith("r1v_export.") and _is_protocol(each)})


def _modules() -> Iterator[tuple[Path, ModuleType]]:
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent not in OF_CHECKPOINTS:
            name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
            yield path, importlib.import_module(name)


def _is_protocol(found: type) -> bool:
    return bool(getattr(found, "_is_protocol", False))


def _implements(owner: type, protocol: type) -> bool:
    """Whether a class has all methods of a protocol."""
    methods = {name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"}
    return bool(methods) and all(hasattr(owner, name) for name in methods)


def _tensor_parameters(function: _Function) -> list[str]:
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return [each.arg for each in arguments if each.annotation and _TENSOR.fullmatch(ast.unparse(each.annotation))]


def _raised(function: _Function) -> set[str]:
    """Names of the package's errors that a function raises itself."""
    ours = {error.__name__ for error in (R1VError, *_subclasses(R1VError))}
    return {
        call.func.id
        for node in _own_nodes(function)
        if isinstance(node, ast.Raise) and isinstance(call := node.exc, ast.Call)
        if isinstance(call.func, ast.Name) and call.func.id in ours
    }


def _own_nodes(function: _Function) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of functions within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, _Function | ast.Lambda | ast.ClassDef):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


def _subclasses(error: type) -> Iterator[type]:
    for each in error.__subclasses__():
        yield each
        yield from _subclasses(each)
