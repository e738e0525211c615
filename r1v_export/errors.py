"""Every error a user can meet: what went wrong, where, expected against found, and what to do next.

The command line prints these without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

from r1v_export.quoting import json_bytes, show

MAX_ERROR_BYTES = 3600
"""Of an error's texts together, in JSON and ASCII: the whole error, with its names and indents, is below 4 kB."""


class R1VError(Exception):
    """Base of all errors that are the user's to fix (bad input, missing capability, failed gate).

    Args:
        what: one sentence, what went wrong.
        where: file, tensor, node or stage it happened in.
        expected: what the program needed.
        found: what it got instead.
        fix: what to do or type next; the only field that may have several lines.

    The values may come from outside, of any kind and size: they are shown short and escaped, see `quoting`.
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
        what, *details = self._shown().items()
        return "\n".join([what[1], *(f"  {name + ':':9} {text}" for name, text in details)])

    def as_dict(self) -> dict[str, str | int | None]:
        """The same, for `--format json`."""
        shown = self._shown()
        fields = {name: shown.get(name) for name in ("what", "where", "expected", "found", "fix")}
        return {"error": type(self).__name__, "exit_code": self.exit_code, **fields}

    def _shown(self) -> dict[str, str]:
        """Its fields as text that any terminal and file can take; where they are too long, the longest are cut."""
        details = {"where": self.where, "expected": self.expected, "found": self.found, "fix": self.fix}
        given = {"what": self.what, **{name: value for name, value in details.items() if value is not None}}
        texts = {name: show(value, MAX_ERROR_BYTES, keep_lines=name == "fix") for name, value in given.items()}
        left = MAX_ERROR_BYTES
        shortest_first = sorted(texts, key=lambda name: json_bytes(texts[name]))
        for waiting, name in zip(range(len(texts), 0, -1), shortest_first, strict=True):
            texts[name] = show(texts[name], left // waiting, keep_lines=name == "fix")
            left -= json_bytes(texts[name])
        return texts


class UsageError(R1VError):
    """The command line, a recipe or a build file asks for something that cannot be."""

    exit_code = 2


class CheckpointError(R1VError):
    """A checkpoint that is missing, broken, or not of a supported architecture."""


class GraphError(R1VError):
    """A graph that cannot be traced, does not keep the contract, or that an engine refuses."""


class BundleError(R1VError):
    """A bundle that is incomplete, altered, or of another schema version."""


class EngineMismatchError(BundleError):
    """A sound engine that was built for another version of its library, or another GPU."""


class InputError(R1VError):
    """An image, prompt or data set that cannot be used."""


class QueueFullError(R1VError):
    """A request that was refused because too many are waiting; a later attempt may be taken."""


class BackendError(R1VError):
    """A server that is to answer in this one's place cannot be reached, or does not have what it is asked for."""


class ParityError(R1VError):
    """An engine whose numbers leave their tolerance against PyTorch."""

    exit_code = 3


class CapabilityError(R1VError):
    """Something this machine lacks: a GPU, an SDK, a package, memory or disk."""

    exit_code = 4
