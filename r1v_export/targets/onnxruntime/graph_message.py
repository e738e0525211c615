"""The few fields of an ONNX file that opening a session reads or changes, without the package onnx.

A protobuf message keeps the fields that its schema does not name, and writes them back as they were: so a schema of a
few fields is enough. Source of the numbers: onnx.proto of ONNX, whose field numbers never change.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FLOAT, FLOAT8E4M3FN, INT8, FLOAT16, UINT4, INT4 = 1, 17, 3, 10, 21, 22
"""Values of `data_type`."""

_PACKAGE = "r1v_export"
_FIELD = descriptor_pb2.FieldDescriptorProto
_MESSAGES: Mapping[str, Mapping[str, tuple[int, Any, str]]] = {
    "StringStringEntryProto": {
        "key": (1, _FIELD.LABEL_OPTIONAL, "string"),
        "value": (2, _FIELD.LABEL_OPTIONAL, "string"),
    },
    "TensorProto": {
        "dims": (1, _FIELD.LABEL_REPEATED, "int64"),
        "data_type": (2, _FIELD.LABEL_OPTIONAL, "int32"),
        "name": (8, _FIELD.LABEL_OPTIONAL, "string"),
        "external_data": (13, _FIELD.LABEL_REPEATED, "StringStringEntryProto"),
    },
    "ValueInfoProto": {"name": (1, _FIELD.LABEL_OPTIONAL, "string")},
    "GraphProto": {
        "initializer": (5, _FIELD.LABEL_REPEATED, "TensorProto"),
        "output": (12, _FIELD.LABEL_REPEATED, "ValueInfoProto"),
        "value_info": (13, _FIELD.LABEL_REPEATED, "ValueInfoProto"),
    },
    "ModelProto": {
        "graph": (7, _FIELD.LABEL_OPTIONAL, "GraphProto"),
        "metadata_props": (14, _FIELD.LABEL_REPEATED, "StringStringEntryProto"),
    },
}
"""Message -> field -> number, label, and type: a scalar's, or another message."""
_SCALARS = {"string": _FIELD.TYPE_STRING, "int32": _FIELD.TYPE_INT32, "int64": _FIELD.TYPE_INT64}


def parse_model(content: bytes) -> Any:
    """An ONNX file as a message with the fields above; `SerializeToString` writes all of it, changed or not.

    Raises:
        google.protobuf.message.DecodeError: it is no protobuf message.
    """
    return _model_class().FromString(content)


@functools.cache
def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}/onnx.proto", package=_PACKAGE, syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for field, (number, label, kind) in fields.items():
            added = described.field.add(name=field, number=number, label=label)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))
