"""Calibration: right scales, memory and stops that do not change them, and every way in which it can be refused."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import CapabilityError, CheckpointError, InputError, UsageError
from r1v_export.quantization.apply.torch import apply
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration import blocks
from r1v_export.quantization.calibration import blockwise_runner as runner
from r1v_export.quantization.calibration.activations import Activations, SavePolicy
from r1v_export.quantization.calibration.blockwise_runner import CalibrationOptions
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSample, Shard
from r1v_export.quantization.calibration.plan import CalibrationPlan
from r1v_export.quantization.calibration.resume import default_resume_folder
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.recipe import Recipe, parse
from r1v_export.quantization.recipe import load as load_recipe
from r1v_export.quantization.sizes import checkpoint_bytes
from r1v_export.quantization.statistics.activation_statistics import BlockStatistics
from r1v_export.quantization.statistics.collector import StatisticsCollector
from r1v_export.reference.model import Model, load
from tests.quantization.calibration_cases import (
    AWQ_RECIPE,
    KV_RECIPE,
    RTN_RECIPE,
    calibrated,
    files_of,
    small_set,
    with_weights,
)

PROPAGATED = load_recipe("int4-gptq").model_copy(update={"propagate_error": True})
SAVED_ALWAYS = SavePolicy(share=1e9, soonest_s=0.0)
SAVED_NEVER = SavePolicy(soonest_s=math.inf)
SAVED_IN_TURN = SavePolicy(share=0.2, soonest_s=0.0)
RECIPES = {"fp8-kv": KV_RECIPE, "int4-awq": AWQ_RECIPE, "int4-gptq, propagated": PROPAGATED}


class Stopped(BaseException):
    """Stands for a process that ends."""


def stop_after(count: int) -> Any:
    """A progress callback that ends the run at its `count`-th call."""
    calls = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls > count:
            raise Stopped

    return on_progress


@pytest.fixture(scope="module")
def whole(synth_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of undisturbed runs."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: calibrated(synth_checkpoint, recipe, folder / name) for name, recipe in RECIPES.items()}


def entering_absmax(model: Model, checkpoint: Checkpoint) -> dict[str, float]:
    """Largest magnitude that enters each linear of the whole reference model, over the small set."""
    largest: dict[str, float] = {}

    def hook(name: str) -> Any:
        def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(args[0].abs().max()))

        return look

    names = list(linear_shapes(model.spec))
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    for sample in small_set(checkpoint).samples:
        image_embeds = model.image_embeds(torch.from_numpy(sample.pixels())).flatten(0, 1)
        ids = torch.tensor([sample.token_ids])
        step = blocks._whole_sequence(ids[..., None])
        rotary = blocks.rotary_tables(model.spec.language, ids.shape[1])
        model.language_model(model.embed(ids, image_embeds), rotary, step, None)
    for handle in handles:
        handle.remove()
    return largest


def test_static_scales_are_the_largest_inputs_of_the_whole_model(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibrate(synth_checkpoint, KV_RECIPE, small_set(synth_checkpoint), tmp_path / "out")
    artifact = Artifact.open(tmp_path / "out", synth_checkpoint)
    expected = entering_absmax(load(synth_checkpoint), synth_checkpoint)
    for name, linear in artifact.linears():
        assert linear.input_scale is not None
        assert float(linear.input_scale) == pytest.approx(expected[name] / 448, rel=1e-4)
    assert set(artifact.schemes) == set(linear_shapes(synth_checkpoint.spec)) - {"language_model.lm_head"}


def first_inputs(artifact: Artifact) -> dict[str, float]:
    """The largest input of the first linears of each quantized decoder layer, by calibration."""
    return {name: entry.absmax for name, entry in artifact.stats.inputs.items() if name.endswith("q_proj")}


def test_an_error_is_propagated_to_the_blocks_behind(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A block sees what comes out of the whole quantized model before it."""
    calibrate(synth_checkpoint, PROPAGATED, small_set(synth_checkpoint), tmp_path / "propagated")
    artifact = Artifact.open(tmp_path / "propagated", synth_checkpoint)
    model = load(synth_checkpoint)
    apply(model, dict(artifact.linears()), {})
    expected, found = entering_absmax(model, synth_checkpoint), first_inputs(artifact)
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)
    original = PROPAGATED.model_copy(update={"propagate_error": False})
    calibrate(synth_checkpoint, original, small_set(synth_checkpoint), tmp_path / "original")
    first, *others = (first_inputs(Artifact.open(tmp_path / "original", synth_checkpoint))).items()
    assert found[first[0]] == first[1]
    assert all(found[name] != pytest.approx(absmax, rel=1e-3) for name, absmax in others)


def test_outputs_of_a_finished_block_that_are_lost_are_computed_again(
    synth_checkpoint: Checkpoint, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    out, name = tmp_path / "out", "int4-gptq, propagated"
    with pytest.raises(Stopped):
        calibrated(synth_checkpoint, PROPAGATED, out, saving=SAVED_ALWAYS, on_progress=stop_after(30))
    shutil.rmtree(default_resume_folder(out) / "activations")
    assert calibrated(synth_checkpoint, PROPAGATED, out) == whole[name]


def test_what_is_only_rounded_is_propagated_too(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = """
name: mixed
description: Rounding to nearest, whose values are stored nowhere, before GPTQ.
propagate_error: true
kv_cache: fp8
rules:
  - modules: "language_model.*"
    layers: [0]
    scheme: {weights: {type: fp8, granularity: channel, algorithm: rtn}}
  - modules: "language_model.*"
    layers: [1]
    scheme: {weights: {type: int8, granularity: channel, algorithm: gptq}}
"""
    calibrate(synth_checkpoint, parse(text), small_set(synth_checkpoint), tmp_path / "out")
    artifact = Artifact.open(tmp_path / "out", synth_checkpoint)
    model = load(synth_checkpoint)
    apply(model, dict(artifact.linears()), {}, cache_scales=artifact.cache_scales)
    expected, found = entering_absmax(model, synth_checkpoint), first_inputs(artifact)
    assert len(found) == 1
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_memory_limits_do_not_change_a_byte(
    synth_checkpoint: Checkpoint, tmp_path: Path, whole: dict[str, dict[str, bytes]], recipe: str
) -> None:
    for limit in (0, 200_000):
        out = tmp_path / str(limit)
        assert calibrated(synth_checkpoint, RECIPES[recipe], out, activation_memory_bytes=limit) == whole[recipe]
        assert not default_resume_folder(out).exists()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("limit", "saving"),
    [(0, SAVED_NEVER), (1 << 30, SAVED_ALWAYS), (1 << 30, SAVED_IN_TURN), (1 << 30, SAVED_NEVER)],
)
def test_stopped_at_every_moment_in_turn_it_ends_with_the_same_bytes(
    synth_checkpoint: Checkpoint,
    tmp_path: Path,
    whole: dict[str, dict[str, bytes]],
    recipe: str,
    limit: int,
    saving: SavePolicy,
) -> None:
    calibration, out = small_set(synth_checkpoint), tmp_path / "out"
    options = CalibrationOptions(activation_memory_bytes=limit, saving=saving)
    stops = 0
    # Each run may get a little further than the one before: without memory of the finished blocks it takes longer.
    for allowed in range(2, 60, 4):
        try:
            calibrate(
                synth_checkpoint,
                RECIPES[recipe],
                calibration,
                out,
                replace(options, on_progress=stop_after(allowed)),
            )
            break
        except Stopped:
            stops += 1
            assert not out.exists()
    assert stops >= 3
    assert files_of(out) == whole[recipe]


@pytest.mark.parametrize(("limit", "saving"), [(0, SAVED_NEVER), (1 << 30, SAVED_ALWAYS)])
def test_a_run_after_a_stop_goes_on_at_the_block_where_it_stopped(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, saving: SavePolicy
) -> None:
    passes: list[tuple[str, int]] = []

    def count(kind: type[blocks.Block]) -> None:
        forward = kind.forward

        def counted(block: blocks.Block, module: Any, sample: CalibrationSample, x: Any) -> Any:
            passes.append((block.name, sample.index))
            return forward(block, module, sample, x)

        monkeypatch.setattr(kind, "forward", counted)

    chain = blocks.blocks(synth_checkpoint.spec)[:-1]
    for kind in {type(block) for block in chain}:
        count(kind)
    run = (synth_checkpoint, KV_RECIPE, small_set(synth_checkpoint), tmp_path / "out")
    options = CalibrationOptions(activation_memory_bytes=limit, saving=saving)
    with pytest.raises(Stopped):
        calibrate(*run, replace(options, on_progress=stop_after(17)))
    before, (interrupted, _) = len(passes), passes[-1]
    calibrate(*run, options)
    assert passes[before] == (interrupted, 0)
    twice = {one for one in passes if passes.count(one) > 1}
    assert {block for block, _ in twice} == {interrupted}
    assert set(passes) == {(block.name, index) for block in chain for index in range(3)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_saved_stays_within_its_share_of_the_model_and_is_gone_on_with(
    synth_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, dict[str, bytes]],
    recipe: str,
) -> None:
    written, write = dict[int, int](), Activations._write

    def weighed(store: Activations, sample: int, block: int, tensor: torch.Tensor) -> None:
        written[sample] = written.get(sample, 0) + tensor.nbytes
        write(store, sample, block, tensor)

    monkeypatch.setattr(Activations, "_write", weighed)
    out, chosen = tmp_path / "out", RECIPES[recipe]
    options = {"saving": SAVED_IN_TURN}
    with pytest.raises(Stopped):
        calibrated(synth_checkpoint, chosen, out, **options, on_progress=stop_after(24))
    files = list((default_resume_folder(out) / "activations").iterdir())
    blocks_of = {path.stem.split("-")[1] for path in files}
    assert len(files) == 3
    assert (len(blocks_of) == 1) == chosen.propagate_error  # all at one block, or each at one of its own
    plan = CalibrationPlan(synth_checkpoint.spec, chosen)
    share = SAVED_IN_TURN.share * checkpoint_bytes(synth_checkpoint.spec, plan.schemes, "bfloat16")
    assert 0 < sum(written.values()) <= share
    assert calibrated(synth_checkpoint, chosen, out, **options) == whole[recipe]


def test_no_block_is_held_when_the_next_is_read(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []
    real_materialize, real_statistics = blocks.materialize, StatisticsCollector.statistics

    def materialize(*args: Any) -> Any:
        alive.append(sum(ref() is not None for ref in held))
        module = real_materialize(*args)
        held.extend(weakref.ref(parameter) for parameter in module.parameters())
        return module

    def statistics(collector: StatisticsCollector) -> BlockStatistics:
        seen = real_statistics(collector)
        held.extend(weakref.ref(gram) for gram in seen.grams.values())
        return seen

    monkeypatch.setattr(runner, "materialize", materialize)
    monkeypatch.setattr(StatisticsCollector, "statistics", statistics)
    calibrate(synth_checkpoint, AWQ_RECIPE, small_set(synth_checkpoint, 1), tmp_path / "out")
    assert len(held) > 40
    assert alive == [0] * len(alive)


SCRIPT = """
import sys
from pathlib import Path
from r1v_export.checkpoint.checkpoint import Checkpoint
from tests.quantization.calibration_cases import KV_RECIPE, calibrated
calibrated(Checkpoint.open(sys.argv[1]), KV_RECIPE, Path(sys.argv[2]), activation_memory_bytes=0,
           on_progress=lambda done, total: print(done, flush=True))
"""


def test_killed_without_warning_it_goes_on_and_ends_with_the_same_bytes(
    synth_checkpoint: Checkpoint, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(synth_checkpoint.folder), str(out)]
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(9):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert default_resume_folder(out).exists()
    assert calibrated(synth_checkpoint, KV_RECIPE, out, activation_memory_bytes=0) == whole["fp8-kv"]


def test_a_finished_calibration_is_not_run_again(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibration = small_set(synth_checkpoint)
    first = calibrate(synth_checkpoint, RTN_RECIPE, calibration, tmp_path / "out")
    again = calibrate(
        synth_checkpoint, RTN_RECIPE, calibration, tmp_path / "out", CalibrationOptions(on_progress=stop_after(0))
    )
    assert again == first


def test_what_a_calibration_of_another_recipe_left_is_not_used(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibration, out = small_set(synth_checkpoint), tmp_path / "out"
    with pytest.raises(Stopped):
        calibrate(synth_checkpoint, KV_RECIPE, calibration, out, CalibrationOptions(on_progress=stop_after(20)))
    assert calibrated(synth_checkpoint, RTN_RECIPE, out) == calibrated(synth_checkpoint, RTN_RECIPE, tmp_path / "fresh")


def test_a_recipe_that_reads_weights_alone_sends_no_sample_through(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks.VisionEmbeddings, "forward", lambda *args: pytest.fail("a sample went through"))
    calibrate(synth_checkpoint, RTN_RECIPE, small_set(synth_checkpoint), tmp_path / "out")
    assert set(Artifact.open(tmp_path / "out", synth_checkpoint).schemes) == {
        name for name in linear_shapes(synth_checkpoint.spec) if name.startswith("language_model.model.layers")
    }


def test_blocks_behind_the_last_that_needs_statistics_are_not_run(
    synth_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks.DecoderBlock, "forward", lambda *args: pytest.fail("a sample went through"))
    recipe = parse(
        KV_RECIPE.to_yaml().replace("- language_model.*", "").replace("kv_cache: fp8", "kv_cache: null"), "vision only"
    )
    calibrate(synth_checkpoint, recipe, small_set(synth_checkpoint), tmp_path / "out")


def test_the_head_is_calibrated_where_a_recipe_names_it(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = parse(KV_RECIPE.to_yaml().replace("- mlp1.*", "- mlp1.*\n  - language_model.lm_head"), "with head")
    calibrate(synth_checkpoint, recipe, small_set(synth_checkpoint), tmp_path / "out")
    head = Artifact.open(tmp_path / "out", synth_checkpoint).linear("language_model.lm_head")
    expected = entering_absmax(load(synth_checkpoint), synth_checkpoint)["language_model.lm_head"]
    assert head.input_scale is not None
    assert float(head.input_scale) == pytest.approx(expected / 448, rel=1e-4)


def test_progress_grows_to_its_total(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    calibrated(synth_checkpoint, AWQ_RECIPE, tmp_path / "out", on_progress=lambda *call: calls.append(call))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len({total for _, total in calls}) == 1
    assert calls[-1][0] == calls[-1][1]


def test_a_full_output_folder_is_refused(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        calibrated(synth_checkpoint, RTN_RECIPE, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_a_shard_is_no_calibration(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="merge all shards"):
        calibrate(synth_checkpoint, KV_RECIPE, small_set(synth_checkpoint, shard=Shard(0, 2)), tmp_path / "out")


def test_a_recipe_that_quantizes_nothing_is_refused(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = Recipe(name="none", description="", rules=({"modules": "*", "scheme": None},))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="quantizes nothing"):
        calibrated(synth_checkpoint, recipe, tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="no CUDA"):
        calibrated(synth_checkpoint, KV_RECIPE, tmp_path / "out", device="cuda")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_broken_weight_is_named_and_nothing_is_left_half_written(
    synth_checkpoint: Checkpoint, tmp_path: Path, value: float
) -> None:
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    broken = with_weights(synth_checkpoint, tmp_path / "broken", {name: value})
    for recipe in (KV_RECIPE, AWQ_RECIPE):
        with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
            calibrated(broken, recipe, tmp_path / "out")
        assert caught.value.where == name
        assert not (tmp_path / "out").exists()


def test_activations_that_overflow_are_named(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    huge = {f"vision_model.encoder.layers.1.mlp.{name}.weight": 1e30 for name in ("fc1", "fc2")}
    broken = with_weights(synth_checkpoint, tmp_path / "broken", huge)
    with pytest.raises(InputError, match="activation is NaN or infinite") as caught:
        calibrated(broken, KV_RECIPE, tmp_path / "out")
    assert "vision_model.encoder.layers.1" in str(caught.value)
    assert "built-in 0" in str(caught.value)


def test_activations_of_zeros_are_named(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    dead = {"language_model.model.layers.1.input_layernorm.weight": 0.0}
    broken = with_weights(synth_checkpoint, tmp_path / "broken", dead)
    for recipe in (KV_RECIPE, AWQ_RECIPE):
        with pytest.raises(InputError, match="are zero") as caught:
            calibrated(broken, recipe, tmp_path / "out")
        assert caught.value.where == "language_model.model.layers.1.self_attn.q_proj"
    calibrated(broken, RTN_RECIPE, tmp_path / "out")  # which does not use activations


def test_images_that_no_sample_shows_are_missed(synth_checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibration = small_set(synth_checkpoint, 1)
    (shown,) = calibration.samples
    image = synth_checkpoint.spec.image_token_id
    tokens = tuple(id_ for id_ in shown.token_ids if id_ != image)
    text = replace(shown, token_ids=tokens, prompt_tokens=0, tiles=0, pixels=lambda: shown.pixels()[:0])
    texts = replace(calibration, samples=(text,), total=1)
    with pytest.raises(InputError, match="No calibration sample reaches") as caught:
        calibrate(synth_checkpoint, KV_RECIPE, texts, tmp_path / "out")
    assert caught.value.where == "vision_model.encoder.layers.0.attn.qkv"
    calibrate(synth_checkpoint, AWQ_RECIPE, texts, tmp_path / "language")  # leaves the vision tower alone
