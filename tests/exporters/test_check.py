from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from r1v_export.contract import graph_contracts
from r1v_export.errors import GraphError
from r1v_export.exporters import export
from r1v_export.exporters.check import check_graph
from tests.tiny_models import tiny_spec

SPEC = tiny_spec()
CONTRACTS = graph_contracts(SPEC.sizes)


@pytest.fixture
def projector() -> ir.Model:
    return export.trace_graph("projector", SPEC, torch.float32)


def check(model: ir.Model) -> None:
    check_graph(model, CONTRACTS["projector"], ir.DataType.FLOAT)


@pytest.mark.parametrize("name", export.SOURCES)
def test_each_exported_graph_keeps_its_contract_and_holds_no_weight(name):
    model = export.trace_graph(name, SPEC, torch.float32)
    check_graph(model, CONTRACTS[name], ir.DataType.FLOAT)
    held = [v.name for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size > 8]
    assert held == []


def test_a_renamed_output_is_found(projector):
    projector.graph.outputs[0].name = "embeds"
    with pytest.raises(GraphError, match=r"(?s)outputs are not the contract's.*image_embeds.*embeds"):
        check(projector)


def test_another_compute_type_is_found(projector):
    with pytest.raises(GraphError, match=r"(?s)inputs.*FLOAT16.*FLOAT "):
        check_graph(projector, CONTRACTS["projector"], ir.DataType.FLOAT16)


@pytest.mark.parametrize(("domain", "op_type"), [("com.microsoft", "Gelu"), ("", "SplitToSequence"), ("", "NoSuchOp")])
def test_an_operator_that_engines_do_not_take_is_named_with_its_module(projector, domain, op_type):
    node = next(node for node in projector.graph if node.op_type == "Gelu")
    node.domain, node.op_type = domain, op_type
    with pytest.raises(GraphError, match=rf"(?s)mlp1\.2/Gelu.*{op_type}"):
        check(projector)


def test_a_second_operator_set_is_refused(projector):
    projector.opset_imports["com.microsoft"] = 1
    with pytest.raises(GraphError, match="standard operators"):
        check(projector)
