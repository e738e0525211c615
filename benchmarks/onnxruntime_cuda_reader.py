"""Runs in the environment of onnxruntime_cuda.py, on its stand-in for the CUDA libraries.

    ENVIRONMENT/bin/python onnxruntime_cuda_reader.py kernels OUT.json
    ENVIRONMENT/bin/python onnxruntime_cuda_reader.py placements OUT.json BUNDLE...

`kernels`: what kernels of the CPU and of CUDA are registered, as the module `kernels` of the package reads them.
`placements`: for each graph of a bundle's engine, the operators that are left after ONNX Runtime's own optimization,
and those of them that are not on the GPU; or why the graph is refused.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
DOMAINS = ("", "com.microsoft")
OLDEST_OPSET = 21
OPEN = 2**31 - 1
PLACED = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s*(?:All nodes|Node\(s\)) placed on \[(\w+)\]")
NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\]\s*(\S.*)")


def kernels() -> dict[str, Any]:
    """Kernels by provider and operator: [first version, last version or null, {type parameter: types}]."""
    tables: dict[str, dict[str, list[Any]]] = {provider: defaultdict(list) for provider in PROVIDERS}
    for kernel in state.get_all_opkernel_def():
        first, last = kernel.version_range
        if kernel.provider not in tables or kernel.domain not in DOMAINS or (not kernel.domain and last < OLDEST_OPSET):
            continue
        types = {name: " ".join(map(plain, sorted(allowed))) for name, allowed in kernel.type_constraints.items()}
        entry = [first, None if last == OPEN else last, dict(sorted(types.items()))]
        tables[kernel.provider][qualified(kernel.domain, kernel.op_name)].append(entry)
    known = {name for table in tables.values() for name in table}
    signatures = {
        qualified(schema.domain, schema.name): [
            [[parameter.name, parameter.typeStr] for parameter in parameters]
            for parameters in (schema.inputs, schema.outputs)
        ]
        for schema in state.get_all_operator_schema()
        if schema.domain == "com.microsoft" and qualified(schema.domain, schema.name) in known
    }
    return {
        "source": f"get_all_opkernel_def() of onnxruntime-gpu {ort.__version__}",
        "build": ort.get_build_info(),
        "signatures": dict(sorted(signatures.items())),
        "kernels": {
            provider: {name: sorted(table[name], key=str) for name in sorted(table)}
            for provider, table in tables.items()
        },
    }


def qualified(domain: str, name: str) -> str:
    return f"{domain}::{name}" if domain else name


def plain(type_name: str) -> str:
    return type_name.removeprefix("tensor(").removesuffix(")") if type_name.startswith("tensor(") else type_name


def placements(bundle: Path) -> dict[str, Any]:
    """What becomes of each graph of a bundle's engine."""
    document = json.loads((bundle / "pipeline.json").read_text())["engines"]["onnxruntime"]
    return {name: placed(bundle, name, file, document["options"]) for name, file in document["files"].items()}


def placed(bundle: Path, name: str, file: str, options: dict[str, Any]) -> dict[str, Any]:
    """Opens a session as `pipeline.json` says, and reads what ONNX Runtime logs and saves of it."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        session = ort.SessionOptions()
        session.log_severity_level, session.intra_op_num_threads = 0, 1
        session.optimized_model_filepath = f"{folder}/optimized.onnx"
        entries = {
            options["weights_root_entry"]: str(bundle),
            "session.optimized_model_external_initializers_file_name": "optimized.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "64",
            **options["session_entries"][name],
        }
        for key, value in entries.items():
            session.add_session_config_entry(key, value)
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            content = (bundle / "engines/onnxruntime" / file).read_bytes()
            ort.InferenceSession(content, session, providers=list(PROVIDERS))
        except Exception as error:  # each of ONNX Runtime's own classes
            return {"refused": str(error)}
        finally:
            os.dup2(stderr, 2)
        log.seek(0)
        optimized = onnx.load(session.optimized_model_filepath, load_external_data=False)
        operators = Counter(node.op_type for node in optimized.graph.node)
        return {"operators": dict(sorted(operators.items())), "on_cpu": on_cpu(log.read().decode(errors="replace"))}


def on_cpu(log: str) -> list[str]:
    """Nodes that are listed below the CPU's heading."""
    nodes, provider = [], None
    for line in log.splitlines():
        if heading := PLACED.search(line):
            provider = heading[1]
        elif provider == "CPUExecutionProvider" and (node := NODE.search(line)):
            nodes.append(node[1])
    return nodes


def main() -> None:
    what, out, *bundles = sys.argv[1:]
    if what == "kernels":
        content = kernels()
    else:
        found = {Path(bundle).name: placements(Path(bundle).resolve()) for bundle in bundles}
        content = {"onnxruntime-gpu": ort.__version__, "bundles": found}
    Path(out).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
