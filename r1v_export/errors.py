"""Every error a user can meet: what went wrong, where, expected against found, and what to do next.

The command line prints these without a traceback and exits with `exit_code`.
"""

from __future__ import annotations


class R1VError(Exception):
    """Base of all errors that are the user's to fix (bad input, missing capability, failed gate).

    Args:
        what: one sentence, what went wrong.
        where: file, tensor, node or stage it happened in.
        expected: what the program needed.
        found: what it got instead.
        fix: what to do or type next.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.found, self.fix = what, where, expected, found, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        details = {"where": self.where, "expected": self.expected, "found": self.found, "fix": self.fix}
        lines = [self.what, *(f"  {name + ':':9} {text}" for name, text in details.items() if text is not None)]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str | int | None]:
        """The same, for `--format json`."""
        fields = ("what", "where", "expected", "found", "fix")
        values = {name: None if (v := getattr(self, name)) is None else str(v) for name in fields}
        return {"error": type(self).__name__, "exit_code": self.exit_code, **values}


class UsageError(R1VError):
    """The command line, a recipe or a build file asks for something that cannot be."""

    exit_code = 2


class CheckpointError(R1VError):
    """A checkpoint that is missing, broken, or not of a supported architecture."""


class GraphError(R1VError):
    """A graph that cannot be traced, does not keep the contract, or that an engine refuses."""


class BundleError(R1VError):
    """A bundle that is incomplete, altered, or of another schema version."""


class InputError(R1VError):
    """An image, prompt or data set that cannot be used."""


class ParityError(R1VError):
    """An engine whose numbers leave their tolerance against PyTorch."""

    exit_code = 3


class CapabilityError(R1VError):
    """Something this machine lacks: a GPU, an SDK, a package, memory or disk."""

    exit_code = 4
