"""`r1v-export`: the group of commands, and how every error ends.

A command's module is imported when it is asked for, and imports torch and the rest when it runs: help stays instant.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import click

from r1v_export import build_extra
from r1v_export.cli import termination
from r1v_export.cli.error_text import LABEL, fitted_error
from r1v_export.cli.help_text import HelpFormatter
from r1v_export.cli.interrupt import leave_at_once
from r1v_export.cli.logs import json_line, json_on_stderr
from r1v_export.cli.streams import discard_stdout, json_text, prepare_streams
from r1v_export.cpus import limit_environment
from r1v_export.errors import CapabilityError, R1VError, UsageError
from r1v_export.opening import is_opening
from r1v_export.version import VERSION

COMMANDS = (
    *(
        "build",
        "init",
        "engine",
        "calibrate",
        "check",
        "verify",
        "run",
        "serve",
        "deploy",
        "bench",
        "inspect",
        "diff",
        "recipes",
        "doctor",
        "synth",
    ),
    "merge-lora",
    "completion",
)
"""In the order of the help; each is the `command` of the module `r1v_export.cli.<name>`, with _ for -."""

BROKEN_PIPE = 141
"""Exit code of a command whose reader went away, as of programs that SIGPIPE ends."""


class Commands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"r1v_export.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that arguments begin with.

        Raises:
            NoSuchCommand: there is none; suggests those with a similar name.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:  # click suggests commands that are imported
            raise click.exceptions.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None


click.Context.formatter_class = HelpFormatter


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="r1v-export")
def cli() -> None:
    """Skywork-R1V-class models: from checkpoint to proven production engines.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 parity failed, 4 something this machine lacks, 130 interrupted, 141 nobody
    reads the output, 143 ended by SIGTERM.
    """


def main() -> None:
    """Run the command line and exit with its code."""
    prepare_streams()
    with contextlib.suppress(RuntimeError, ValueError):  # where stderr is no file
        faulthandler.enable()  # a page of a mapped file that cannot be read any more ends the process: say where
    logging.raiseExceptions = False  # No traceback on stderr where a record cannot be written there.
    if warning := limit_environment():  # before anything imports torch or numpy
        as_json = json_on_stderr(sys.argv[1:])
        click.echo(json_line(logging.WARNING, warning) if as_json else f"warning: {warning}", err=True)
    exit_code = run(sys.argv[1:])
    if exit_code in (UserInterruptError.exit_code, termination.EXIT_CODE) or is_opening():
        leave_at_once(exit_code)
    sys.exit(exit_code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line, report its error if it has one, and return the exit code."""
    result: object = None  # an int is what a command passed to Context.exit
    try:
        with build_extra.required():
            result = cli.main(
                args=list(arguments),
                prog_name="r1v-export",
                standalone_mode=False,
                color=_color(),
                obj=tuple(arguments),
            )
        sys.stdout.flush()
    except R1VError as error:
        return _report(arguments, error)
    except click.exceptions.NoArgsIsHelpError as error:  # a group alone: a question, not a mistake
        click.echo(error.ctx.get_help() if error.ctx else "")
        sys.stdout.flush()
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else _named(arguments)
        what = error.format_message().replace("\n\t", " ")  # click lists choices on lines of their own
        return _report(arguments, UsageError(what, fix=f"{command} --help"))
    except (click.Abort, KeyboardInterrupt):
        return _report(
            arguments,
            UserInterruptError("Interrupted.", fix=f"run the same command again{_resumes(arguments)}"),
        )
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == 0:  # click has answered a shell that completes a line
            return 0
        discard_stdout()  # click exits with 1 where an output's reader went away
        return BROKEN_PIPE
    except OSError as error:
        return _report(arguments, _of_file_system(error))
    except MemoryError:
        fix = "close other programs, or run it on a machine with more memory"
        return _report(arguments, CapabilityError("Out of memory.", fix=fix))
    except BaseException as error:  # Panics of libraries in Rust are no Exceptions.
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return _report(arguments, R1VError(what[:300], fix="run with --debug for the traceback"))
    return result if isinstance(result, int) else 0


def _resumes(arguments: Sequence[str]) -> str:
    """What a command does when it is run again after an interruption, where it is worth saying."""
    return "; it resumes" if arguments and arguments[0] in ("build", "calibrate") else ""


def _named(arguments: Sequence[str]) -> str:
    """The command that arguments begin with, as users type it; click's parser does not say whose option is wrong."""
    path, command = "r1v-export", cast("click.Command", cli)
    context = click.Context(cli)
    for argument in arguments:
        found = command.get_command(context, argument) if isinstance(command, click.Group) else None
        if found is None:
            break
        path, command = f"{path} {argument}", found
    return path


def _of_file_system(error: OSError) -> R1VError:
    """An error of the system that no command expects."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapabilityError(
            "The disk is full.",
            where=error.filename or "standard output, or a file that the system does not name",
            found=error.strerror,
            fix="make room, or choose another disk, and run the same command again",
        )
    return R1VError(
        "A file or folder cannot be used.",
        where=error.filename,
        found=error.strerror or error,
        fix="check the path, its permissions and its disk; --debug shows the traceback",
    )


class UserInterruptError(R1VError):
    """The user interrupted the command, with Ctrl-C."""

    exit_code = 130


def _report(arguments: Sequence[str], error: R1VError) -> int:
    """Show an error, to people on stderr or as JSON on stdout, and return its exit code.

    The arguments are examined as typed, because the error may be that they cannot be parsed.
    """
    if "--debug" in arguments:
        traceback.print_exc()
    if "--format=json" in arguments or ("--format", "json") in pairwise(arguments):
        try:
            click.echo(json_text(error.as_dict()))
            sys.stdout.flush()
            return error.exit_code
        except OSError:
            discard_stdout()  # Then it goes to stderr, as text.
    if json_on_stderr(arguments):
        click.echo(json_line(logging.ERROR, error.what, error=error.as_dict()), err=True)
        return error.exit_code
    click.secho(LABEL, fg="red", bold=True, nl=False, err=True, color=_color())
    click.echo(fitted_error(str(error)), err=True)
    return error.exit_code


def _color() -> bool | None:
    """None: in color on a terminal; False: nowhere, as https://no-color.org asks for."""
    return False if os.environ.get("NO_COLOR") else None


if __name__ == "__main__":
    main()
