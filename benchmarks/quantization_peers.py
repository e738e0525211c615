"""Our quantization against nvidia-modelopt's and ONNX Runtime's own, on the same model, samples and questions.

Each quantizes the linears of r1v-nano's language model (all but the head), with the same 128 calibration samples.
Compared is how far the next-token distributions over held-out replies are from float32's. ONNX Runtime's 4-bit
quantizer is also the one that onnxruntime-genai's model builder calls.

nvidia-modelopt wants an environment of its own: that of `requirements.lock` with `pip install --no-deps
nvidia-modelopt==0.47.0` and `pip install requests huggingface_hub scipy rich ninja pulp tqdm omegaconf`.

    PYTHONPATH=. VENV/bin/python benchmarks/quantization_peers.py [--questions 500]
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import modelopt.torch.quantization as modelopt
import numpy as np
import onnxruntime as ort
import torch
from divergence import distributions, divergence, held_out, run
from measure import machine, write_results
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.quantization.artifact.artifact import Artifact
from r1v_export.quantization.calibration.calibrate import calibrate
from r1v_export.quantization.calibration.dataset import CalibrationSet, prepare
from r1v_export.quantization.calibration.raw_examples import read_examples
from r1v_export.quantization.recipe import Recipe
from r1v_export.reference.model import Model, load

SAMPLES, GROUP = 128, 128
FP8 = {
    "weights": {"type": "fp8", "granularity": "channel", "algorithm": "rtn"},
    "inputs": {"type": "fp8", "mode": "static"},
}
FP8_TENSOR = FP8 | {"weights": {"type": "fp8", "granularity": "tensor", "algorithm": "rtn"}}


def int4(algorithm: str) -> dict:
    weights = {"type": "int4", "granularity": "group", "group_size": GROUP, "algorithm": algorithm}
    return {"weights": weights}


def ours(scheme: Mapping, checkpoint: Checkpoint, calibration: CalibrationSet) -> Model:
    """The language model quantized by this project, as PyTorch computes it."""
    rules = [{"modules": "language_model.*", "scheme": scheme}]
    recipe = Recipe.model_validate({"name": "language", "description": "Of the language model only.", "rules": rules})
    model = load(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        calibrate(checkpoint, recipe, calibration, Path(folder) / "calibration")
        fake_quantize(model, Artifact.open(Path(folder) / "calibration", checkpoint))
    return model


def by_modelopt(config: Mapping, checkpoint: Checkpoint, calibration: CalibrationSet) -> Model:
    """The language model quantized by nvidia-modelopt."""
    model = load(checkpoint)

    def forward_loop(_: torch.nn.Module) -> None:
        for sample in calibration.samples:
            run(model, sample)

    modelopt.quantize(model.language_model, copy.deepcopy(config), forward_loop)
    return model


def by_onnxruntime(checkpoint: Checkpoint) -> Model:
    """The language model with weights rounded by ONNX Runtime's 4-bit quantizer, symmetric, in the same groups."""
    model = load(checkpoint)
    for name, module in model.language_model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            print(f"    {name}", file=sys.stderr)
            module.weight = torch.nn.Parameter(_rounded_by_onnxruntime(module.weight), requires_grad=False)
    return model


def _rounded_by_onnxruntime(weight: Tensor) -> Tensor:
    """[out, in] -> the weights that its MatMulNBits computes with: its product with the identity."""
    outputs, inputs = weight.shape
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [value("x", TensorProto.FLOAT, [inputs, inputs])],
        [value("y", TensorProto.FLOAT, [inputs, outputs])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.detach().numpy().T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantizer = MatMulNBitsQuantizer(model, block_size=GROUP, is_symmetric=True, accuracy_level=1)
    quantizer.process()
    session = ort.InferenceSession(quantizer.model.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0].T.copy())


@click.command()
@click.option("--questions", "count", default=500, show_default=True)
def main(count: int) -> None:
    conditions = machine(("torch", "onnxruntime", "nvidia-modelopt"))
    checkpoint = Checkpoint.open(None)
    calibration = prepare(read_examples(None, SAMPLES), checkpoint)
    questions = held_out(checkpoint, count)
    original = distributions(load(checkpoint), questions)
    contenders: dict[str, Callable[[], Model]] = {
        "fp8: r1v-export, weights per channel": lambda: ours(FP8, checkpoint, calibration),
        "fp8: r1v-export, weights per tensor": lambda: ours(FP8_TENSOR, checkpoint, calibration),
        "fp8: modelopt FP8_DEFAULT": lambda: by_modelopt(modelopt.FP8_DEFAULT_CFG, checkpoint, calibration),
        "int4: r1v-export rtn": lambda: ours(int4("rtn"), checkpoint, calibration),
        "int4: r1v-export awq": lambda: ours(int4("awq"), checkpoint, calibration),
        "int4: r1v-export gptq": lambda: ours(int4("gptq"), checkpoint, calibration),
        "int4: modelopt INT4_AWQ": lambda: by_modelopt(modelopt.INT4_AWQ_CFG, checkpoint, calibration),
        "int4: onnxruntime, as genai's builder": lambda: by_onnxruntime(checkpoint),
    }
    results = {}
    for name, make in contenders.items():
        results[name] = divergence(original, distributions(make(), questions))
        print(f"  {name:40} {results[name]}", file=sys.stderr, flush=True)
    content = {"machine": conditions, "questions": count, "samples": SAMPLES, "group_size": GROUP, "results": results}
    print(write_results("quantization-peers", content))


if __name__ == "__main__":
    main()
