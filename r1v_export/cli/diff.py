"""`r1v-export diff`: two bundles side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from r1v_export.cli.output import common_options, print_json, table, wrapped, wrapped_table, write_page
from r1v_export.cli.paths import OptionPath
from r1v_export.count import Count

if TYPE_CHECKING:
    from r1v_export.diff.compare import BundleDiff, FileDifferences
    from r1v_export.diff.tensors import TensorDifference

_SHOWN_FILES = 12


@click.command(short_help="Show in what two bundles differ.")
@click.argument("first", type=OptionPath())
@click.argument("second", type=OptionPath())
@click.option("--report", type=OptionPath(), help="Also write an HTML page, which shows what is equal too.")
@common_options
def command(first: Path, second: Path, report: Path | None, format_: str) -> None:
    """Compare the bundles FIRST and SECOND: source, settings, tool versions, sizes, parity, files, tensors.

    The exit code is 0 whether they differ or not.
    """
    from r1v_export.bundle import Bundle
    from r1v_export.cli.made_by import made_by
    from r1v_export.diff.compare import compare_bundles
    from r1v_export.diff.report import to_html

    diff = compare_bundles(Bundle.open(first), Bundle.open(second))
    if report is not None:
        write_page(report, to_html(diff, made_by()))
    if format_ == "json":
        print_json({"equal": diff.equal, **asdict(diff)})
    else:
        click.echo(_as_text(diff))
        if report is not None:
            click.echo(f"report: {report}")


def _as_text(diff: BundleDiff) -> str:
    from r1v_export.diff.report import label, values

    if diff.equal:
        return wrapped(
            f"equal: {Count(diff.files.equal, 'file')} with the same hashes in both manifests, made in the same way; "
            "whether the files are as their manifests say is verify's to find out"
        )
    parts = []
    for title, rows in diff.tables.items():
        others = [(f"  {label(row.name)}", *values(row, title)) for row in rows if not row.equal]
        if others:
            parts.append(table(others, (title, diff.first, diff.second)))
    parts.append(_files_text(diff.files))
    if diff.tensor is not None:
        parts.append(_tensor_text(diff.tensor, diff.first, diff.second))
    return "\n\n".join(parts)


def _files_text(files: FileDifferences) -> str:
    lines = [f"files: {files.equal} equal"]
    kinds = {
        "differ": files.differing,
        "in the first alone": files.first_only,
        "in the second alone": files.second_only,
    }
    for kind, names in kinds.items():
        lines += [f"  {kind}: {len(names)}"] if names else []
        lines += [f"    {name}" for name in names[:_SHOWN_FILES]]
        lines += [f"    and {len(names) - _SHOWN_FILES} more"] if len(names) > _SHOWN_FILES else []
    return "\n".join(lines)


def _tensor_text(tensor: TensorDifference, first: str, second: str) -> str:
    where = wrapped(f"first tensor that differs: {tensor.tensor} of {tensor.file}")
    if tensor.differing is None or tensor.elements is None:
        return f"{where}\n{wrapped_table([(f'  {first}', tensor.first), (f'  {second}', tensor.second)])}"
    return (
        f"{where}\n  {tensor.first}: {tensor.differing} of {Count(tensor.elements, 'element')}, "
        f"by {tensor.max_abs_difference:.3g} at most"
    )
