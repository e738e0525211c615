"""Our messages, read and written by tritonclient's."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from r1v_export.deploy.triton.grpc_messages import infer_request, stream_response
from tests.deploy.triton.tritonserver import ENVIRONMENT, installed

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not installed(), reason="no tritonclient: `make test` installs it"),
]

READ = """
import json, sys
from tritonclient.grpc import service_pb2
request = service_pb2.ModelInferRequest.FromString(sys.stdin.buffer.read())
print(json.dumps({
    "model": request.model_name, "id": request.id, "raw": [raw.hex() for raw in request.raw_input_contents],
    "inputs": [[each.name, each.datatype, list(each.shape)] for each in request.inputs],
}))
"""
WRITE = """
import sys
from tritonclient.grpc import service_pb2
response = service_pb2.ModelInferResponse(model_name="r1v", model_version="1", id="7")
response.parameters["triton_final_response"].bool_param = False
response.outputs.add(name="token_ids", datatype="INT64", shape=[2])
response.raw_output_contents.append((5).to_bytes(8, "little") + (1 << 40).to_bytes(8, "little"))
response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
response.raw_output_contents.append((3).to_bytes(4, "little") + b"abc")
message = service_pb2.ModelStreamInferResponse(error_message="wrong", infer_response=response)
sys.stdout.buffer.write(message.SerializeToString())
"""


def run(code: str, content: bytes = b"") -> bytes:
    python = ENVIRONMENT / "bin" / "python"
    return subprocess.run([python, "-c", code], input=content, capture_output=True, check=True).stdout


def test_tritonclient_reads_our_requests():
    inputs = {"messages": "hé".encode(), "input_ids": np.array([1, -2]), "enable_thinking": np.array([True])}
    found = json.loads(run(READ, infer_request("r1v", "id-1", inputs)))
    assert (found["model"], found["id"]) == ("r1v", "id-1")
    assert found["inputs"] == [
        ["messages", "BYTES", [1]],
        ["input_ids", "INT64", [2]],
        ["enable_thinking", "BOOL", [1]],
    ]
    ids = (1).to_bytes(8, "little") + (-2).to_bytes(8, "little", signed=True)
    assert found["raw"] == ["03000000" + "hé".encode().hex(), ids.hex(), "01"]


def test_we_read_tritonclient_s_responses():
    error, outputs = stream_response(run(WRITE))
    assert error == "wrong"
    assert outputs["token_ids"].tolist() == [5, 1 << 40]
    assert outputs["text_output"] == b"abc"
