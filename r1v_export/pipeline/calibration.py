"""Calibration as part of a build: which recipe, which samples, and the model that the quantised engines are held to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, Device
from r1v_export.errors import InputError
from r1v_export.manifest import hash_file
from r1v_export.pipeline.stage import Advance

if TYPE_CHECKING:
    from r1v_export.quantization.artefact import Artefact
    from r1v_export.quantization.recipe import Recipe
    from r1v_export.quantization.records import Record
    from r1v_export.reference.model import Model

CALIBRATION = "calibration"
"""The calibration artefact's folder in a bundle."""

WORK = 1000
"""How much `calibrate` tells of in all, whatever the model."""

LONGEST_REPLY = 512
"""Tokens of the model's own reply to a calibration prompt that has none: thoughts are what it will mostly compute."""


def chosen_recipe(config: BuildConfig) -> Recipe | None:
    """The recipe of a quantised build, None for the others.

    Raises:
        UsageError: there is no such recipe, or it is not one.
    """
    if not config.quantised:
        return None
    from r1v_export.quantization.recipe import PRESETS, load

    return load(config.recipe or PRESETS[config.precision])


def data_digest(data: str | None) -> str | None:
    """SHA-256 over a calibration set's files, None for the generated one.

    Raises:
        InputError: there is no such file or folder.
    """
    if data is None:
        return None
    path, digest = Path(data), hashlib.sha256()
    if not path.exists():
        raise InputError("There is no such calibration set.", where=path, expected="a folder or a .jsonl file")
    # A .jsonl file names pictures that lie in its folder.
    folder = path if path.is_dir() else path.parent
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + hash_file(file).sha256.encode())
    return digest.hexdigest()


def calibrate(
    config: BuildConfig, recipe: Recipe, checkpoint: Checkpoint, out: Path, work: Path, advance: Advance
) -> None:
    """Write the calibration artefact into `out`; `work` keeps what is done for a build that follows a stopped one.

    Raises:
        InputError: the calibration data cannot be used.
        CheckpointError: a weight is not finite.
    """
    from r1v_export.quantization.calibrate import calibrate as run
    from r1v_export.quantization.dataset import prepare
    from r1v_export.quantization.records import read_records
    from r1v_export.quantization.stream import Execution

    records = read_records(config.calibration.data, config.calibration.samples)
    without_answer = any(record.answer is None for record in records)
    replies = own_replies(checkpoint, config.device) if without_answer else None
    calibration = prepare(records, checkpoint, continuation=replies)
    told = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal told
        permille = WORK * done // max(1, total)
        advance(permille - told)
        told = permille

    execution = Execution(device=config.device, work=work, on_progress=on_progress)
    run(checkpoint, recipe, calibration, out, execution)


def own_replies(checkpoint: Checkpoint, device: Device) -> Callable[[Sequence[Record]], list[Sequence[int]]]:
    """The model's own greedy replies, thoughts included, computed by the PyTorch reference."""
    from r1v_export.reference.model import ReferenceEngine, load
    from r1v_export.reference.prompt import TEMPLATES
    from r1v_export.reference.tokenizer import Tokenizer
    from r1v_export.runner.chain import Request, Runner
    from r1v_export.runner.sampling import Sampling

    spec = checkpoint.spec
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    engine = ReferenceEngine(load(checkpoint).to(device))
    runner = Runner(engine, tokenizer, spec, TEMPLATES[spec.template], checkpoint.generation_config)

    def reply(records: Sequence[Record]) -> list[Sequence[int]]:
        requests = [Request.ask(record.prompt, *record.load_images()) for record in records]
        answers = runner.answers(requests, Sampling(max_new_tokens=LONGEST_REPLY))
        return [answer.token_ids for answer in answers]

    return reply


def open_artefact(folder: Path, checkpoint: Checkpoint) -> Artefact | None:
    """The calibration of the bundle in `folder`, None where it is not quantised."""
    if not (folder / CALIBRATION).is_dir():
        return None
    from r1v_export.quantization.artefact import Artefact

    return Artefact.open(folder / CALIBRATION, checkpoint)


def fake_quantise(model: Model, artefact: Artefact) -> None:
    """Put the artefact's linears in the place of the model's own: what quantised engines must compute."""
    from r1v_export.quantization.fake import apply

    apply(model, dict(artefact.linears()), {name: read() for name, read in artefact.overrides.items()})
