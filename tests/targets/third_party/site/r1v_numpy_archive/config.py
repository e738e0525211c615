"""How the archive is written: the target's block of the build file."""

from __future__ import annotations

from r1v_export.strict import StrictModel


class NumpyArchiveConfig(StrictModel):
    """One choice."""

    compress: bool = False
    """Deflate the archive: smaller, and slower to open."""
