"""The messages of Triton's gRPC service that a streamed inference takes, and their tensors.

Built from the table below with protobuf alone: tritonclient, which has them too, takes older versions of protobuf only
than this package's other dependencies have.
Source: KServe's Open Inference Protocol, grpc_service.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"

_MESSAGES: Mapping[str, Sequence[tuple[int, str, str, bool]]] = {
    "Tensor": ((1, "name", "string", False), (2, "datatype", "string", False), (3, "shape", "int64", True)),
    "ModelInferRequest": (
        (1, "model_name", "string", False),
        (3, "id", "string", False),
        (5, "inputs", "Tensor", True),
        (7, "raw_input_contents", "bytes", True),
    ),
    "ModelInferResponse": (
        (1, "model_name", "string", False),
        (3, "id", "string", False),
        (5, "outputs", "Tensor", True),
        (6, "raw_output_contents", "bytes", True),
    ),
    "ModelStreamInferResponse": (
        (1, "error_message", "string", False),
        (2, "infer_response", "ModelInferResponse", False),
    ),
}
"""Message -> its fields that are used here: number, name, type, whether it is repeated. Others are skipped when read.
The tensors of requests and of responses are messages with the same fields."""

_DATATYPES = {np.dtype(np.int64): "INT64", np.dtype(np.bool_): "BOOL"}


def infer_request(model: str, request_id: str, inputs: Mapping[str, np.ndarray | bytes]) -> bytes:
    """A serialized ModelInferRequest; bytes are a tensor of one string."""
    request = _messages()["ModelInferRequest"](model_name=model, id=request_id)
    for name, value in inputs.items():
        if isinstance(value, bytes):
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            request.raw_input_contents.append(struct.pack("<I", len(value)) + value)
        else:
            request.inputs.add(name=name, datatype=_DATATYPES[value.dtype], shape=value.shape)
            request.raw_input_contents.append(value.tobytes())
    return bytes(request.SerializeToString())


def stream_response(content: bytes) -> tuple[str, dict[str, np.ndarray | bytes]]:
    """What a serialized ModelStreamInferResponse says: an error message or "", and the output tensors.

    Returns:
        INT64 tensors as arrays, tensors of one string as bytes.
    """
    message = _messages()["ModelStreamInferResponse"].FromString(content)
    return str(message.error_message), dict(_outputs(message.infer_response))


def _outputs(response: Any) -> Iterator[tuple[str, np.ndarray | bytes]]:
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            yield tensor.name, bytes(raw[4:])
        else:
            yield tensor.name, np.frombuffer(raw, dtype=np.int64)


@cache
def _messages() -> Mapping[str, Any]:
    """Message name -> its class."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="r1v_export/inference.proto", package="inference", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind, repeated in fields:
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if kind in _MESSAGES:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".inference.{kind}"
            else:
                added.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()  # of its own: tritonclient in the same process has the same names
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _MESSAGES
    }
