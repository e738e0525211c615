"""engines/bundle/contract.h against the contract."""

from __future__ import annotations

from pathlib import Path

from r1v_export import contract
from r1v_export.serialized.contract_header import HEADER_FILE, contract_header

ROOT = Path(__file__).parents[2]


def test_the_committed_header_is_the_contracts() -> None:
    """Write it anew with: python -m r1v_export.serialized.contract_header > engines/bundle/contract.h"""
    assert (ROOT / HEADER_FILE).read_text("utf-8") == contract_header()


def test_the_header_has_every_boundary_tensor() -> None:
    sizes = contract.Sizes(1, 1, 1, 1, 1, 1, 1, 1)
    header = contract_header().replace("{layer}", "0")
    for graph in contract.graph_contracts(sizes).values():
        for tensor in (*graph.inputs, *graph.outputs):
            assert f'"{tensor.name}"' in header
