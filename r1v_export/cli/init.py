"""`r1v-export init`: a build file with every key, its meaning and its default, to change and to build."""

from __future__ import annotations

import ast
import inspect
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from r1v_export.cli.output import common_options, print_json, print_summary
from r1v_export.cli.paths import OptionPath
from r1v_export.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

_WIDTH = 100
_HEAD = (
    "A build file. Build it with: r1v-export build --config FILE -o FOLDER. Options of the command line win over it, "
    "and a key that is removed has its default, which is shown here."
)
_TARGETS = "Engines to build, each with its options. Remove one # from each line of a block to build it as well."
_IMPLIED = frozenset({"precision"})
"""Keys that are comments, because a recipe or a quantized checkpoint implies another value than the default."""


@click.command(short_help="Write a build file with every key explained.")
@click.argument("file", type=OptionPath(), default=Path("build.yaml"))
@common_options
def command(file: Path, format_: str) -> None:
    """Write a build file with every key, its meaning and its default to FILE (build.yaml if omitted).

    It builds as it is: `r1v-export build --config FILE`. An existing FILE is not overwritten.
    \f
    Raises:
        UsageError: the file exists, or cannot be written.
    """
    text = commented_build_file()
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        if file.is_dir():
            fix = f"name a file in it, such as {file / 'build.yaml'}"
            raise UsageError("A build file is a file.", where=file, found="a folder", fix=fix) from error
        raise UsageError(
            "The file exists and is not overwritten.", where=file, fix="name a new file, or remove this one"
        ) from error
    except OSError as error:
        raise UsageError(
            "The build file cannot be written.", where=file, found=error.strerror, fix="choose another path"
        ) from error
    if format_ == "json":
        print_json({"file": str(file)})
    else:
        command = f"r1v-export build --config {shlex.quote(str(file))}"
        print_summary(f"{file}: every key with its default; build it with:", command)


def commented_build_file() -> str:
    """The default build as YAML, with what each key means as a comment before it."""
    from r1v_export.config import BuildConfig

    return "\n".join([*_comment(_HEAD), "", *_keys(BuildConfig())]) + "\n"


def _keys(settings: BaseModel) -> Iterator[str]:
    """Each field of a model: what it means, then its name and value."""
    from pydantic import BaseModel

    meanings = _field_docstrings(type(settings))
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name == "targets":
            yield from (*_comment(_TARGETS), "targets:", *_indented(_targets()))
        elif isinstance(value, BaseModel):
            yield from (*_comment(type(value).__doc__ or ""), f"{name}:", *_indented(_keys(value)))
        else:
            yield from _comment(
                " ".join(filter(None, (field.description or meanings.get(name), _choices(field.annotation))))
            )
            line = f"{name}: {_scalar(settings.model_dump(mode='json')[name])}"
            yield f"# {line}" if name in _IMPLIED else line


def _field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The texts behind a model's fields, by field.

    Read from its source here: pydantic's `use_attribute_docstrings` reads it whenever the model is imported, which was
    a tenth of what `r1v-export run` imports.
    """
    from pydantic import BaseModel

    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        try:
            [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):  # Another package's target, whose source cannot be read.
            continue
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(content))):
                    texts[name] = content
    return texts


def _targets() -> Iterator[str]:
    """A block for each target, all but the default's as comments."""
    from r1v_export.targets.entry_points import DEFAULT
    from r1v_export.targets.registry import loadable

    for target in loadable():
        options = target.config_class()
        has_options = bool(type(options).model_fields)
        name = f"{target.name}:" if has_options else f"{target.name}: {{}}"
        block = [*_comment(type(options).__doc__ or ""), name, *_indented(_keys(options))]
        yield from block if target.name == DEFAULT else (f"# {line}" for line in block)


def _choices(annotation: Any) -> str | None:
    """The values of a field that has a choice of a few."""
    kinds = [annotation] if get_origin(annotation) is Literal else list(get_args(annotation))
    values = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if not values or any(kind is not NoneType and get_origin(kind) is not Literal for kind in kinds):
        return None
    return f"One of {', '.join(values)}{', or null' if NoneType in kinds else ''}."


def _scalar(value: Any) -> str:
    """A value on one line of YAML."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _comment(text: str) -> list[str]:
    lines = textwrap.wrap(" ".join(text.replace("`", "").split()), _WIDTH, break_on_hyphens=False)
    return [f"# {line}" for line in lines]


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
