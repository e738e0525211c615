"""Manifests of bundles that only their files matter of."""

from __future__ import annotations

from collections.abc import Mapping

from r1v_export.manifest import PASSED, Manifest, SourceEntry, StageEntry


def manifest_of(stages: Mapping[str, StageEntry]) -> Manifest:
    return Manifest(
        producer="r1v-export 0",
        command="r1v-export build r1v-nano",
        source=SourceEntry(kind="builtin", name="r1v-nano", revision=None, files={}),
        precision="fp32",
        parity={"onnxruntime": PASSED},
        device="cpu",
        tools={"python": "3"},
        stages=dict(stages),
    )
