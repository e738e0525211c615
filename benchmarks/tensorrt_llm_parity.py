"""TensorRT-LLM checkpoints against the fake-quantized model that they were written from: every format, 1 to 8 GPUs.

    python benchmarks/tensorrt_llm_parity.py [--questions 8]

Two models: r1v-nano, which two GPUs can share, and one with random weights that eight can. Each format is calibrated on
generated samples, written for each number of GPUs in the model's own 16 bits, and read back by the independent reader.
Both then foresee the right replies to held-out questions. Errors are of logits, divergences in nats; `as_on_one` says
whether everything that was read, un-shared, is what one GPU's checkpoint holds, bit for bit; `in_float32`, what is left
of the error where nothing is rounded to 16 bits.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from divergence import Question, held_out
from measure import machine, write_results
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.quantized_linear import QuantizedLinear
from r1v_export.quantization.recipe import Recipe, Rule, load
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.reference.model import Model
from r1v_export.reference.model import load as load_model
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.reader import LanguageCheckpoint, read_checkpoint, read_config
from r1v_export.targets.tensorrt_llm.checkpoint.writer import write_checkpoint
from r1v_export.targets.tensorrt_llm.runtime.engine import load_language_model

SAMPLES = 8
EIGHT_GPUS = {
    "llm_config.hidden_size": 1024,
    "llm_config.num_attention_heads": 32,
    "llm_config.num_key_value_heads": 16,
    "llm_config.intermediate_size": 1024,
    "llm_config.vocab_size": 523,
}
"""Every count is a multiple of eight GPUs times a group of 128, but the vocabulary."""


def language(name: str, **changes: Any) -> Recipe:
    """A shipped recipe, as far as it is about the language model."""
    recipe = load(name)
    modules = [tuple(m for m in rule.modules if m.startswith("language_model")) for rule in recipe.rules]
    rules = [rule.model_copy(update={"modules": m}) for rule, m in zip(recipe.rules, modules, strict=True) if m]
    return recipe.model_copy(update={"rules": tuple(rules), **changes})


def zero_points() -> Recipe:
    recipe = language("int4-gptq").model_dump()
    recipe["rules"][0]["scheme"]["weights"]["type"] = "uint4"
    return Recipe.model_validate(recipe)


def mixed() -> Recipe:
    """INT4, the first layer in FP8 and the last in 16 bits."""
    recipe, fp8 = language("int4-awq"), language("fp8-tensor").rules[0]
    layers = (fp8.model_copy(update={"layers": (0,)}), Rule(modules=("language_model.*",), layers=(-1,), scheme=None))
    return recipe.model_copy(update={"rules": (*recipe.rules, *layers)})


FORMATS: dict[str, Recipe | torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": language("fp8-tensor"),
    "fp8-rowwise": language("fp8-rowwise"),
    "int4-awq": language("int4-awq"),
    "int4-gptq": language("int4-gptq"),
    "uint4-gptq": zero_points(),
    "w4a8": language("w4a8"),
    "int8-smoothquant": language("int8-smoothquant"),
    "mixed": mixed(),
    "fp8, fp8 cache": language("fp8-tensor", kv_cache="fp8"),
    "int8, int8 cache": language("int8-kv"),
    "int4-awq, int8 cache": language("int4-awq", kv_cache="int8"),
}


@torch.inference_mode()
def replies(model: Model, questions: Sequence[Question], images: Sequence[Tensor]) -> Tensor:
    """Logits [reply tokens, vocab] that foresee the questions' replies; `images` are embedded already."""
    found = []
    for question, image in zip(questions, images, strict=True):
        ids_BS = torch.tensor([question.sample.token_ids])
        seq = ids_BS.shape[1]
        whole = CacheStep(torch.arange(seq)[None], torch.tensor([0]), torch.tensor([seq]))
        embeds_BSE, tables = model.embed(ids_BS, image), rotary_tables(model.spec.language, seq)
        logits_BSV, _ = model.language_model(embeds_BSE, tables, whole, cache=None)
        found.append(logits_BSV[0, -question.reply_tokens - 1 : -1])
    return torch.cat(found)


def distance(reference: Tensor, found: Tensor) -> dict[str, float]:
    p, q = reference.double().log_softmax(-1), found.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return {
        "max_abs_error": float((reference - found).abs().max()),
        "largest_logit": float(reference.abs().max()),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1": float((p.argmax(-1) == q.argmax(-1)).double().mean()),
    }


def same(one: LanguageCheckpoint, many: LanguageCheckpoint) -> bool:
    """Everything that a checkpoint says of its model, bit for bit."""
    numbers = [_numbers(checkpoint) for checkpoint in (one, many)]
    equal = numbers[0].keys() == numbers[1].keys() and all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in ((numbers[0][name].contiguous(), numbers[1][name].contiguous()) for name in numbers[0])
    )
    return equal and one.kv_scales == many.kv_scales and one.spec == many.spec


def _numbers(checkpoint: LanguageCheckpoint) -> dict[str, Tensor]:
    parts = {
        f"{name}.{part}": value.reshape(-1)
        for name, linear in checkpoint.linears.items()
        for part, value in _tensors(linear).items()
    }
    return {name: tensor.reshape(-1) for name, tensor in checkpoint.tensors.items()} | parts


def _tensors(linear: QuantizedLinear) -> dict[str, Tensor]:
    return {part: value for part, value in vars(linear).items() if isinstance(value, Tensor)}


def written(
    checkpoint: Checkpoint,
    artifact: Artifact | None,
    dtype: torch.dtype,
    tp: int,
    questions: Sequence[Question],
    images: Sequence[Tensor],
    folder: Path,
) -> tuple[LanguageCheckpoint, str | None, Tensor]:
    """A checkpoint as it is read back, what it says it is, and its logits."""
    folder.mkdir(parents=True)
    write_checkpoint(checkpoint, artifact, folder, dtype, parallel=Mapping(tp))
    read, config = read_checkpoint(folder), read_config(folder)
    logits = replies(load_language_model(folder, checkpoint.spec), questions, images)
    shutil.rmtree(folder)
    return read, config.quantization.quant_algo, logits


def rows(model: str, checkpoint: Checkpoint, gpus: Sequence[int], count: int, work: Path) -> list[dict[str, Any]]:
    """One row for each format and number of GPUs."""
    questions, samples = held_out(checkpoint, count), prepare(read_examples(None, SAMPLES), checkpoint)
    float_model, found = load_model(checkpoint), []
    with torch.inference_mode():
        pixels = [torch.from_numpy(question.sample.pixels()) for question in questions]
        images = [float_model.image_embeds(tiles).flatten(0, 1) for tiles in pixels]
    for name, form in FORMATS.items():
        reference, artifact, dtype = load_model(checkpoint), None, torch.bfloat16
        if isinstance(form, torch.dtype):
            dtype = form
        else:
            calibrate(checkpoint, form, samples, work / name)
            artifact = Artifact.open(work / name, checkpoint)
            fake_quantize(reference, artifact)
        expected, one = replies(reference, questions, images), None
        for tp in gpus:
            read, algorithm, logits = written(checkpoint, artifact, dtype, tp, questions, images, work / "written")
            exact = written(checkpoint, artifact, torch.float32, tp, questions, images, work / "written")[2]
            one = one or read
            row = {"model": model, "format": name, "quant_algo": algorithm, "tp": tp, "as_on_one": same(one, read)}
            row |= distance(expected, logits)
            row["max_abs_error_in_float32"] = float((expected - exact).abs().max())
            found.append(row)
            print(f"  {row}", file=sys.stderr, flush=True)
    return found


@click.command(help=__doc__)
@click.option("--questions", "count", default=8, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-parity"), show_default=True)
def main(count: int, work: Path) -> None:
    conditions = machine(("torch",))
    shutil.rmtree(work, ignore_errors=True)
    wide = synthesize(work / "model", preset="nano", vision_layers=1, language_layers=3, overrides=EIGHT_GPUS)
    results = rows("r1v-nano", Checkpoint.open(None), (1, 2), count, work / "nano")
    results += rows("random, 8 GPUs", Checkpoint.open(wide), (1, 2, 4, 8), count, work / "wide")
    shutil.rmtree(work)
    print(write_results("tensorrt-llm-parity", {"machine": conditions, "questions": count, "results": results}))


if __name__ == "__main__":
    main()
