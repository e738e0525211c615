"""A bundle compared with its manifest, its graphs and documents with the contract."""

from __future__ import annotations

from pathlib import Path

from r1v_export import build_extra, contract
from r1v_export.bundle import Bundle
from r1v_export.errors import GraphError
from r1v_export.files import require_regular
from r1v_export.manifest import Manifest, verify
from r1v_export.pipeline.bundle_files import check_files
from r1v_export.progress import Progress


def verify_bundle(folder: Path, progress: Progress) -> Manifest:
    """Three stages: hashes, documents, graphs. No weight is loaded.

    Raises:
        CapabilityError: the extra `build` is not installed: the graphs cannot be read.
        BundleError: a file is missing, extra or altered; the manifest is unusable; `contract.json` or
            `pipeline.json` contradicts the rest of the bundle.
        GraphError: a graph's boundary or operators are not the contract's, or its weights are not all in the bundle.
    """
    build_extra.require()
    bundle = Bundle.open(folder)
    with progress.stage("hashes") as task:
        verify(folder, task.report)
    with progress.stage("documents"):
        check_files(bundle)
    with progress.stage("graphs"):
        check_weights(bundle)
        check_graphs(bundle)
    return bundle.manifest


def check_weights(bundle: Bundle) -> None:
    """Check where each graph of the bundle, those of its engines included, has its tensors' bytes.

    Raises:
        GraphError: a graph cannot be read, or a tensor's bytes lie outside the bundle, beyond the end of their file, or
            are not as many as its shape and type need.
    """
    from r1v_export.exporters.stored_tensors import check_stored_tensors

    for path in bundle.manifest.files:
        if path.endswith(".onnx"):
            check_stored_tensors(bundle.folder, path, bundle.manifest.files)


def check_graphs(bundle: Bundle) -> None:
    """Compare each graph of a bundle with the contract, reading structure only. Some targets are built without graphs.

    Raises:
        GraphError: a graph cannot be read or does not match the contract.
    """
    import onnx_ir as ir
    import torch

    from r1v_export.exporters.bind import DTYPES
    from r1v_export.exporters.check import check_graph
    from r1v_export.targets.registry import compute_dtype

    compute = DTYPES[getattr(torch, compute_dtype(bundle.config))]
    for name, graph in contract.graph_contracts(bundle.spec.sizes).items():
        path = bundle.graphs / f"{name}.onnx"
        if path.relative_to(bundle.folder).as_posix() not in bundle.manifest.files:
            continue
        try:
            require_regular(path)
            model = ir.load(path)
        except Exception as error:  # protobuf, file system and onnx-ir each raise their own
            raise GraphError("A graph cannot be read.", where=path, found=error) from error
        check_graph(model, graph, compute)
