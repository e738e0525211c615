"""Which engine of a bundle libr1v answers with."""

from __future__ import annotations

from r1v_export.bundle import Bundle
from r1v_export.errors import UsageError
from r1v_export.targets import registry


def libr1v_target(bundle: Bundle, name: str | None = None) -> str:
    """The bundle's first target that libr1v runs, or the one that is named.

    Raises:
        UsageError: libr1v runs the named one not, or none of the bundle; or the bundle has no target of this name.
    """
    runs = [target.name for target in registry.loadable() if target.runs_in_libr1v]
    offered = bundle.targets if name is None else (bundle.target(name),)
    for target in offered:
        if target in runs:
            return target
    raise UsageError(
        "libr1v runs no engine of this bundle.",
        where=bundle.folder,
        expected=" or ".join(runs),
        found=", ".join(offered) or "no engine",
        fix=f"build the model with: r1v-export build MODEL --target {runs[0]} -o FOLDER",
    )
