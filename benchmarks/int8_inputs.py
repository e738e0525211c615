"""What rounding the inputs of 4-bit weights to 8 bits costs, apart from what the weights cost and from near ties.

Five models over the same histories (the greedy answers of PyTorch with the 4-bit weights): PyTorch in float32, PyTorch
with the 4-bit weights, our engine with exact and with int8 inputs, and PyTorch with the 4-bit weights and inputs that
are rounded as MatMulNBits documents it, each block of a group's length by its largest magnitude over 127. What the
engine differs by from that last one is a defect, or values on the edge between two 8-bit numbers, each of which moves
those behind it; so a single product is compared too, where there is nothing behind it. Where a greedy
choice changes, the gap between the two best logits says whether it was near a tie. Models: r1v-nano, and random ones of
its width, one ViT block and one decoder layer, as the tests have. Results: benchmarks/results/<date>-int8-inputs.json.

    PYTHONPATH=. python benchmarks/int8_inputs.py [--questions 16] [--new-tokens 8] [--seeds 8]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import torch
from measure import RESULTS, machine, write_results
from onnx import TensorProto, helper, numpy_helper

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.contract import Engine
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.metrics import kl_divergence
from r1v_export.parity.samples import ParitySample
from r1v_export.pipeline.calibration import open_artifact
from r1v_export.pipeline.parity_gate import GeneratedQuestions, candidate_endpoint, reference_endpoint
from r1v_export.quantization.apply.torch import FakeQuantLinear
from r1v_export.runner.kv_cache import KVCache, embed_chosen

MODELS = ("float32", "int4", "int4, exact inputs", "int4, int8 inputs", "int4, int8 inputs in PyTorch")
"""The first two and the last are PyTorch's, the second the reference of the gate; the others are the engine's."""
REFERENCE = MODELS[1]
GROUP = 128
PAIRS = {
    "weights: int4 from float32": (MODELS[0], MODELS[1]),
    "engine with exact inputs from PyTorch": (MODELS[1], MODELS[2]),
    "inputs: int8 from exact, in PyTorch": (MODELS[1], MODELS[4]),
    "gate: engine with int8 inputs from PyTorch": (MODELS[1], MODELS[3]),
    "engine with int8 inputs from PyTorch with them": (MODELS[4], MODELS[3]),
}


def build(work: Path, model: Path | None, inputs: str) -> Path:
    """A bundle of a checkpoint, or of r1v-nano, with `int4-rtn`."""
    out = work / f"{model.name if model else 'nano'}-{inputs}"
    command = ["build", str(model) if model else "r1v-nano", "--recipe", "int4-rtn", "--int4-inputs", inputs]
    command = [sys.executable, "-m", "r1v_export.cli.main", *command, "--no-parity", "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def endpoints(work: Path, model: Path | None) -> tuple[Checkpoint, dict[str, Endpoint]]:
    """The five models of a checkpoint, or of r1v-nano."""
    bundles = [build(work, model, inputs) for inputs in ("exact", "int8")]
    checkpoint = Checkpoint.open(model) if model else Checkpoint.open("r1v-nano")
    artifact = open_artifact(bundles[0], checkpoint)
    torch_ones = [reference_endpoint(checkpoint, "cpu"), reference_endpoint(checkpoint, "cpu", artifact)]
    engines = [candidate_endpoint(bundle, "onnxruntime", "cpu") for bundle in bundles]
    rounded = reference_endpoint(checkpoint, "cpu", artifact)
    round_inputs(rounded.engine.model)
    return checkpoint, dict(zip(MODELS, [*torch_ones, *engines, rounded], strict=True))


def round_inputs(model: torch.nn.Module) -> None:
    """Let every quantized linear round its input [..., I] to 8 bits, a scale for each block of `GROUP`."""

    def rounded(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x_NG = inputs[0].unflatten(-1, (-1, GROUP))
        scale_N1 = x_NG.abs().amax(-1, keepdim=True) / 127
        values_NG = torch.where(scale_N1 > 0, (x_NG / scale_N1).round(), 0)
        return (values_NG * scale_N1).flatten(-2)

    for module in model.modules():
        if isinstance(module, FakeQuantLinear):
            module.register_forward_pre_hook(rounded)


def logits(engine: Engine, prompt_SE: np.ndarray, answer: list[int] | None, new_tokens: int) -> np.ndarray:
    """Logits [N, V] of the N tokens behind a prompt, one decoder step each: behind the answer's, or behind its own.

    Args:
        answer: what was chosen at each step; the engine's own greedy choices if None.
    """
    cache = KVCache(engine.decoder(1, len(prompt_SE) + new_tokens))
    rows = [cache.append(prompt_SE[None], np.array([len(prompt_SE)]))[0]]
    while len(rows) < new_tokens:
        token = int(rows[-1].argmax()) if answer is None else answer[len(rows) - 1]
        rows.append(cache.append(embed_chosen(engine, np.array([[token]])), np.array([1]))[0])
    return np.stack(rows)


def compared(models: dict[str, Endpoint], sample: ParitySample, new_tokens: int) -> dict[str, np.ndarray]:
    """Logits [N, V] of each model, over the reference's greedy answer.

    The prompt's embeddings are those of the reference: tower, projector and embeddings are float32 in all of them.
    """
    reference = models[REFERENCE]
    inputs = reference.inputs(sample)
    features = reference.engine.projector(reference.engine.vision(inputs.pixel_values))
    image_embeds_NE = features.reshape(-1, features.shape[-1])
    prompt_SE = reference.engine.embed(inputs.input_ids[None], image_embeds_NE)[0]
    found = {REFERENCE: logits(reference.engine, prompt_SE, None, new_tokens)}
    answer = found[REFERENCE].argmax(axis=-1).tolist()
    for name, model in models.items():
        if name != REFERENCE:
            found[name] = logits(model.engine, prompt_SE, answer, new_tokens)
    return found


def facts(reference_RV: np.ndarray, candidate_RV: np.ndarray) -> dict[str, Any]:
    """What the candidate's logits [R, V] differ by from the reference's."""
    error_R = np.abs(candidate_RV - reference_RV).max(axis=-1)
    ordered_R2 = np.sort(reference_RV, axis=-1)[:, -2:]
    gap_R = ordered_R2[:, 1] - ordered_R2[:, 0]
    flipped_R = reference_RV.argmax(axis=-1) != candidate_RV.argmax(axis=-1)
    return {
        "mean_kl": float(kl_divergence(reference_RV, candidate_RV).mean()),
        "top1_agreement": float(1 - flipped_R.mean()),
        "steps": len(gap_R),
        "flipped": np.flatnonzero(flipped_R).tolist(),
        "gaps_of_flipped": [round(float(gap), 6) for gap in gap_R[flipped_R]],
        "median_largest_error": float(np.median(error_R)),
        "median_gap": float(np.median(gap_R)),
        "standard_deviation_of_logits": float(reference_RV.std()),
    }


def study(checkpoint: Checkpoint, models: dict[str, Endpoint], questions: int, new_tokens: int) -> dict[str, Any]:
    """Of each pair of models, what differs over all questions; and the lowest agreement of a single question."""
    by_question = [compared(models, sample, new_tokens) for sample in GeneratedQuestions(checkpoint, questions)]
    report = {}
    for name, (first, second) in PAIRS.items():
        whole = [np.concatenate([found[model] for found in by_question]) for model in (first, second)]
        agreements = [facts(found[first], found[second])["top1_agreement"] for found in by_question]
        report[name] = facts(*whole) | {"lowest_agreement_of_a_question": min(agreements)}
    return report


def kernel() -> dict[str, dict[str, float]]:
    """What one MatMulNBits with int8 inputs differs by from the same arithmetic in numpy, and from exact inputs.

    Relative to the largest result; by the number of rows multiplied together, which chooses the kernel.
    """
    generator, features = np.random.default_rng(0), (64, 512)
    qweight_OI = generator.integers(0, 16, features).astype(np.uint8)
    scales_OG = generator.uniform(0.5, 1, (features[0], features[1] // GROUP)).astype(np.float32)
    weight_OI = (qweight_OI.astype(np.float32) - 8) * scales_OG.repeat(GROUP, axis=1)
    found = {}
    for rows in (1, 2, 3, 64):
        x_MI = generator.normal(size=(rows, features[1])).astype(np.float32)
        x_MGI = x_MI.reshape(rows, -1, GROUP)
        scale_MG1 = np.abs(x_MGI).max(-1, keepdims=True) / np.float32(127)
        rounded_MI = (np.round(x_MGI / scale_MG1) * scale_MG1).reshape(x_MI.shape)
        results = multiply(x_MI, qweight_OI, scales_OG)
        exact, rounded = x_MI @ weight_OI.T, rounded_MI @ weight_OI.T
        largest = float(np.abs(exact).max())
        found[str(rows)] = {
            "from the same arithmetic": float(np.abs(results - rounded).max()) / largest,
            "from exact inputs": float(np.abs(results - exact).max()) / largest,
        }
    return found


def multiply(x_MI: np.ndarray, qweight_OI: np.ndarray, scales_OG: np.ndarray) -> np.ndarray:
    """MatMulNBits of inputs [M, I] and 4-bit values [O, I], which have 8 for 0, with int8 inputs; [M, O]."""
    (out, size), groups = qweight_OI.shape, scales_OG.shape[1]
    packed = (qweight_OI[:, 0::2] | qweight_OI[:, 1::2] << 4).reshape(out, groups, -1)
    constants = {"weight": packed, "scales": scales_OG.reshape(-1)}
    attributes = {"K": size, "N": out, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft", **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x_MI})[0]
    return result


def random_models(work: Path, seeds: int) -> Iterator[Path]:
    """Checkpoints as the tests' tiny one, which is that of seed 0."""
    for seed in range(seeds):
        folder = work / f"random-{seed}"
        if not folder.exists():
            synthesize(folder, preset="nano", vision_layers=1, language_layers=1, seed=seed)
        yield folder


@click.command()
@click.option("--questions", default=16, show_default=True)
@click.option("--new-tokens", default=8, show_default=True)
@click.option("--seeds", default=8, show_default=True, help="Random models.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/r1v-int8-inputs"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(questions: int, new_tokens: int, seeds: int, work: Path, results: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(("onnxruntime", "torch", "numpy")), "models": {}}
    report |= {"questions": questions, "new_tokens": new_tokens, "one_product_by_rows": kernel()}
    for model in (None, *random_models(work, seeds)):
        name = model.name if model else "r1v-nano"
        report["models"][name] = study(*endpoints(work, model), questions, new_tokens)
        for pair, found in report["models"][name].items():
            click.echo(f"{name:12} {pair:46} {found}")
    click.echo(write_results("int8-inputs", report, results))


if __name__ == "__main__":
    main()
