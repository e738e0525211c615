"""What ONNX Runtime's CUDA provider makes of our graphs, found without a GPU.

    PYTHONPATH=. .venv/bin/python benchmarks/onnxruntime_cuda.py --environment /tmp/readers/ort-gpu kernels
    PYTHONPATH=. .venv/bin/python benchmarks/onnxruntime_cuda.py --environment /tmp/readers/ort-gpu placements

The real onnxruntime-gpu is loaded on a stand-in for the CUDA libraries (cuda_stand_in.c; needs gcc and nm), which has
memory and computes nothing. So the provider lists its kernels, optimizes graphs and decides which of their nodes it
takes, as on a GPU. `kernels` writes the package's table, r1v_export/targets/onnxruntime/kernels.json. `placements`
builds a small random model in every precision for CUDA and writes where each node went:
benchmarks/results/<date>-onnxruntime-cuda-placements.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from environments import environment_of
from measure import machine, write_results

import r1v_export
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig, CalibrationConfig, ParityConfig, Precision
from r1v_export.pipeline import provenance
from r1v_export.pipeline.build import build
from r1v_export.targets.onnxruntime import target

PACKAGES = ("onnxruntime-gpu==1.31.1", "onnx==1.23.2", "numpy<3")
HERE = Path(__file__).parent
TABLE = Path(r1v_export.__file__).parent / "targets/onnxruntime/kernels.json"
SYMBOL = re.compile(r" U (\w+)(?:@(\S+))?$")
UNVERSIONED = {
    "cu": "libcuda.so.1",
    "createNv": "libnvonnxparser.so.10",
    "create": "libnvinfer.so.10",
    "getInfer": "libnvinfer.so.10",
    "getPlugin": "libnvinfer.so.10",
}
"""Libraries of undefined symbols without a version, by how they begin; the first that fits."""
LOADED_ONLY = ("libcurand.so.10",)
"""Libraries that are opened without a symbol being asked for."""

CASES: dict[str, tuple[Precision, str | None]] = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", None),
    **{name: ("fp8", name) for name in ("fp8", "fp8-tensor", "fp8-kv")},
    **{name: ("int8", name) for name in ("int8-smoothquant", "int8-kv")},
    **{name: ("int4", name) for name in ("int4-rtn", "int4-gptq", "int4-awq", "mixed", "w4a8")},
}


def make_environment(folder: Path) -> dict[str, str]:
    """The environment variables under which `folder`'s Python loads the provider; installs what is not there."""
    environment_of(folder, ("install", "-q", "--no-deps", PACKAGES[0]), ("install", "-q", *PACKAGES[1:]))
    libraries = folder / "stand-in"
    libraries.mkdir(exist_ok=True)
    capi = next((folder / "lib").glob("python3*/site-packages/onnxruntime/capi"))
    compile_stand_ins([capi / f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")], libraries)
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


def compile_stand_ins(providers: list[Path], folder: Path) -> None:
    """Compile every library that the providers ask for, each with all of its symbols."""
    wanted: dict[str, set[str]] = defaultdict(set, {name: set() for name in LOADED_ONLY})
    for provider in providers:
        listing = subprocess.run(["nm", "-D", "--undefined-only", provider], check=True, capture_output=True, text=True)
        for name, version in filter(None, map(symbol, listing.stdout.splitlines())):
            wanted[version].add(name)
    source = (HERE / "cuda_stand_in.c").read_text(encoding="utf-8")
    written = set(re.findall(r"(\w+)\(", source))
    rest = sorted(set().union(*wanted.values()) - written)
    code = source + "".join(f"Status {name}(void) {{ return 0; }}\n" for name in rest)
    (folder / "stand_in.c").write_text(code, encoding="utf-8")
    for library in wanted:
        versioned = library not in (*UNVERSIONED.values(), *LOADED_ONLY)
        exported = "{ global: *; };"
        (folder / "versions").write_text(f"{library} {exported}" if versioned else exported, encoding="utf-8")
        script = f"-Wl,-soname,{library},--version-script,{folder / 'versions'}"
        command = ["gcc", "-shared", "-fPIC", "-w", "-O1", "-o", folder / library, folder / "stand_in.c", script]
        subprocess.run(command, check=True)


def symbol(line: str) -> tuple[str, str] | None:
    """An undefined symbol and the library it is to come from; None if that is not one of CUDA's or TensorRT's."""
    found = SYMBOL.search(line)
    if found is None:
        return None
    name, version = found.groups()
    if version is not None:
        return (name, version) if version.startswith("libcu") else None
    return next(((name, library) for start, library in UNVERSIONED.items() if name.startswith(start)), None)


def read(environment: Path, what: str, *bundles: Path) -> Any:
    """What onnxruntime_cuda_reader.py finds."""
    variables = make_environment(environment)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [environment / "bin/python", HERE / "onnxruntime_cuda_reader.py", what, out, *bundles]
        subprocess.run(command, check=True, env=variables)
        return json.loads(out.read_text(encoding="utf-8"))


def write_table(table: dict[str, Any], path: Path) -> None:
    """Write the kernels, an operator a line."""
    providers = []
    for provider, operators in table.pop("kernels").items():
        lines = ",\n".join(f"   {json.dumps(name)}: {json.dumps(kernels)}" for name, kernels in operators.items())
        providers.append(f'  "{provider}": {{\n{lines}\n  }}')
    signatures = table.pop("signatures")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(signature)}" for name, signature in signatures.items())
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in table.items())
    body = ",\n".join(providers)
    path.write_text(f'{{\n{head} "signatures": {{\n{lines}\n }},\n "kernels": {{\n{body}\n }}\n}}\n', encoding="utf-8")


def bundles(work: Path) -> list[Path]:
    """A model of two blocks and two layers, built for CUDA in every precision; calibrated on the CPU."""
    target.check_device = lambda device: None  # type: ignore[assignment]  # this machine has no CUDA
    provenance.device_name = lambda device: device  # type: ignore[assignment]
    model = work / "model"
    if not model.exists():
        synthesize(model, preset="nano", vision_layers=2, language_layers=2)
    built = []
    for name, (precision, recipe) in CASES.items():
        common = {"model": str(model), "precision": precision, "parity": ParityConfig(enabled=False)}
        artifact = None
        if recipe is not None:
            calibration = CalibrationConfig(samples=4)
            on_cpu = BuildConfig(**common, recipe=recipe, calibration=calibration)
            artifact = str(build(on_cpu, work / f"{name}-cpu").out / "calibration")
        config = BuildConfig(**common, device="cuda", calibration=CalibrationConfig(artifact=artifact))
        built.append(build(config, work / name).out)
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kernels", "placements"))
    parser.add_argument("--environment", type=Path, required=True, help="made if it is not there")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "r1v-onnxruntime-cuda")
    arguments = parser.parse_args()
    if arguments.what == "kernels":
        write_table(read(arguments.environment, "kernels"), TABLE)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = read(arguments.environment, "placements", *bundles(arguments.work))
    write_results("onnxruntime-cuda-placements", {"machine": machine(("onnx",)), **found})


if __name__ == "__main__":
    main()
