"""`--threads`: CPU threads of an operator, at most those that there are CPUs for."""

from __future__ import annotations

import click

from r1v_export.cli.output import WholeNumber
from r1v_export.cpus import available_cpus, use_threads
from r1v_export.errors import UsageError

MAX_THREADS = 4096
"""More than any machine has cores; ONNX Runtime starts every thread that it is asked for, and hangs on millions."""


def _use_threads(context: click.Context, _option: click.Parameter, count: int | None) -> None:
    """
    Raises:
        UsageError: more than there are CPUs for; with --ray the cluster's are compared, once it is known.
    """
    if count is None or count <= (most := available_cpus()).count:
        use_threads(count)
    elif context.params.get("ray") is not None:
        use_threads(most.count, of_tasks=count)
    else:
        raise UsageError(
            "More threads than CPUs that this process may use would wait for each other.",
            where="--threads",
            expected=f"1 to {most.count} ({most.source})",
            found=count,
            fix=f"pass --threads {most.count}, or omit it",
        )


threads_option = click.option(
    "--threads",
    type=WholeNumber(1, MAX_THREADS),
    expose_value=False,
    callback=_use_threads,
    help="CPU threads of an operator. [default: OMP_NUM_THREADS, or by cores and quota]",
)
