"""What the pages of `diff` and `inspect` say of how they were made."""

from __future__ import annotations

from r1v_export.cli.typed_command import typed_command
from r1v_export.pages import MadeBy
from r1v_export.pipeline.provenance import source_date, utc_now
from r1v_export.version import VERSION


def made_by() -> MadeBy:
    """The running command, its date (that of SOURCE_DATE_EPOCH if set) and this package's version."""
    return MadeBy(typed_command(), source_date() or utc_now(), VERSION)
