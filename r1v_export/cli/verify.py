"""`r1v-export verify`: recompute every hash of a bundle, and compare its graphs with the contract."""

from __future__ import annotations

from pathlib import Path

import click

from r1v_export.cli.output import common_options, print_json, shown_progress
from r1v_export.cli.paths import OptionPath
from r1v_export.count import Count


@click.command(short_help="Recompute a bundle's hashes.")
@click.argument("bundle", type=OptionPath())
@common_options
def command(bundle: Path, format_: str) -> None:
    """Recompute a bundle's hashes and check its graphs against the contract."""
    from r1v_export.pipeline.verify import verify_bundle
    from r1v_export.progress import size
    from r1v_export.quoting import visible

    manifest = verify_bundle(bundle, shown_progress(format_, 3))
    size_bytes = sum(entry.size for entry in manifest.files.values())
    if format_ == "json":
        print_json({"ok": True, "files": len(manifest.files), "size_bytes": size_bytes, "command": manifest.command})
    else:
        click.echo(
            f"ok: {Count(len(manifest.files), 'file')}, {size(size_bytes)}, as built by {visible(manifest.producer)}"
        )
