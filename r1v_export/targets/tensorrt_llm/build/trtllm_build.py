"""Run `trtllm-build` and check its result."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from r1v_export.errors import BundleError, CapabilityError, GraphError, UsageError
from r1v_export.files import read_regular_bytes
from r1v_export.progress import ProgressCallback
from r1v_export.strict import load_json
from r1v_export.targets.tensorrt_llm.build.command import PROGRAM, EngineSizes
from r1v_export.targets.tensorrt_llm.checkpoint.reader import Config
from r1v_export.targets.tensorrt_llm.library import ENGINES, ENGINES_TEXT, version_number, within

_ASK = "import importlib.metadata as m; print(m.version('tensorrt_llm'))"

_STEPS = (
    (re.compile(r"Total time of constructing network"), 15),
    (re.compile(r"Total time of building .*(?<!all engines): "), 90),
    (re.compile(r"Engine serialized"), 100),
)
"""Lines of its log -> percent of one rank's work that are then done."""

_TAIL = 15


def find_program(path: Path | None, recipe: str) -> Path:
    """`trtllm-build` of a supported version: the one given, or the one on PATH.

    It is usually installed in an environment of its own, whose Python knows the version.

    Args:
        recipe: how to build elsewhere, for the error.

    Raises:
        UsageError: what was given is no file.
        CapabilityError: there is none here, or it is of another version.
    """
    if path is not None and not path.is_file():
        raise UsageError(
            "There is no such program.",
            where=f"--program {path}",
            expected=f"{PROGRAM} of TensorRT-LLM",
            found="a folder" if path.is_dir() else "no such file",
            fix=f"correct the path, or omit it to take the {PROGRAM} that PATH has",
        )
    found = str(path) if path else shutil.which(PROGRAM)
    if found is None:
        raise CapabilityError(
            f"{PROGRAM} is not installed.",
            where="PATH",
            expected=ENGINES_TEXT,
            fix=f"build on a machine that has it, with a GPU of the kind that the engine is for:\n{recipe}",
        )
    version = _version(Path(found))
    if version is None or not within(version, ENGINES):
        raise CapabilityError(
            f"{PROGRAM} is of another version than the checkpoint is written for.",
            where=found,
            expected=ENGINES_TEXT,
            found=".".join(map(str, version)) if version else "no version that its Python knows",
            fix=f"use an environment with a supported version, or the container:\n{recipe}",
        )
    return Path(found)


def _version(program: Path) -> tuple[int, ...] | None:
    python = program.resolve().parent / "python"
    try:
        asked = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return version_number(asked.stdout)


def run(program: Path, arguments: Sequence[str], ranks: int, on_progress: ProgressCallback) -> None:
    """Run the command and report its progress.

    Args:
        arguments: of `command.build_arguments`.
        ranks: engines that come out.
        on_progress: called with percent of all engines.

    Raises:
        GraphError: it fails; with the end of its log.
    """
    tail: list[str] = []
    progress = _Progress(ranks, on_progress)
    with subprocess.Popen(
        [program, *arguments[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            progress.read(line)
            tail = [*tail[1 - _TAIL :], line.rstrip()]
    if process.returncode:
        raise GraphError(
            f"{PROGRAM} failed.",
            where=program,
            expected="exit code 0",
            found=f"exit code {process.returncode}: {' / '.join(tail)}",
            fix="the lines above say why; a smaller max_batch_size or max_num_tokens takes less memory",
        )


class _Progress:
    """Percent of all engines, from lines of the log. Ranks that are built side by side log in any order, so a line
    counts for whichever of them has not got that far."""

    def __init__(self, ranks: int, on_progress: ProgressCallback) -> None:
        self._ranks, self._on_progress, self._reported = ranks, on_progress, 0
        self._reached = dict.fromkeys((percent for _, percent in _STEPS), 0)

    def read(self, line: str) -> None:
        for pattern, percent in _STEPS:
            if pattern.search(line):
                self._reached[percent] = min(self._ranks, self._reached[percent] + 1)
        steps = [0, *self._reached]
        done = sum((here - before) * self._reached[here] for before, here in pairwise(steps))
        if done // self._ranks > self._reported:
            self._reported = done // self._ranks
            self._on_progress(self._reported, 100)


def check_engine(out: Path, config: Config, sizes: EngineSizes) -> None:
    """Compare an engine's own config with the request.

    Raises:
        BundleError: files are missing, or the engine is another one.
    """
    seen, expected = _read_engine(out / "config.json"), _expected(config, sizes)
    differing = [name for name in expected if expected[name] != seen[name]]
    missing = [name for name in _engine_files(config) if not (out / name).is_file() or not (out / name).stat().st_size]
    if differing or missing:
        raise BundleError(
            "The engine does not match the request.",
            where=out,
            expected=", ".join([f"{name} {expected[name]}" for name in differing] + missing),
            found=", ".join([f"{name} {seen[name]}" for name in differing] + [f"no {name}" for name in missing]),
            fix="build it again into an empty folder",
        )


def _read_engine(path: Path) -> dict[str, Any]:
    try:
        found = load_json(read_regular_bytes(path), BundleError, "The engine's config cannot be read", where=path)
        model, build = found["pretrained_config"], found["build_config"]
        return {
            **{name: model[name] for name in ("architecture", "dtype", "vocab_size")},
            "rotary_base": float(model["rotary_base"]),
            **{name: model["mapping"][name] for name in ("tp_size", "pp_size")},
            **{name: model["quantization"][name] for name in ("quant_algo", "kv_cache_quant_algo")},
            **{name: build[name] for name in ("max_batch_size", "max_input_len", "max_seq_len")},
            "max_prompt_embedding_table_size": build["max_prompt_embedding_table_size"],
        }
    except OSError as error:
        raise BundleError(
            "The engine's config cannot be read.",
            where=path,
            expected="a folder that r1v-export engine or trtllm-build wrote",
            found=error.strerror or error,
            fix="correct --engine, or build one: r1v-export engine BUNDLE -o FOLDER",
        ) from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        what = "The engine's config cannot be read."
        raise BundleError(what, where=path, found=repr(error), fix="build it again") from error


def _expected(config: Config, sizes: EngineSizes) -> dict[str, Any]:
    return {
        "architecture": config.architecture,
        "dtype": config.dtype,
        "vocab_size": config.vocab_size,
        "rotary_base": config.rotary_base,
        "tp_size": config.mapping.tp_size,
        "pp_size": config.mapping.pp_size,
        "quant_algo": config.quantization.quant_algo,
        "kv_cache_quant_algo": config.quantization.kv_cache_quant_algo,
        "max_batch_size": sizes.max_batch_size,
        "max_input_len": sizes.max_input_len,
        "max_seq_len": sizes.max_seq_len,
        "max_prompt_embedding_table_size": sizes.max_multimodal_len,
    }


def _engine_files(config: Config) -> list[str]:
    return [f"rank{rank}.engine" for rank in range(config.mapping.world_size)]
