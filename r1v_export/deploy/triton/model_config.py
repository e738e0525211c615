"""A Triton model configuration, written as config.pbtxt.

Source: triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from r1v_export.deploy.triton.tensors import Tensor

Backend = Literal["python", "r1v"]
"""What runs a repository's models: Triton's Python backend, or libr1v's own."""


@dataclass(frozen=True)
class ModelConfig:
    """What config.pbtxt says of one model.

    Attributes:
        max_batch_size: rows that Triton batches; 0 where a request is one item and has no batch dimension.
        queue_delay_us: how long a batch waits for more rows, in microseconds; None without dynamic batching.
        decoupled: answers with any number of responses.
        on_gpu: each instance has a GPU.
        parameters: strings for the model.
        backend: of Triton, that runs it.
    """

    name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    max_batch_size: int = 0
    queue_delay_us: int | None = None
    decoupled: bool = False
    instances: int = 1
    on_gpu: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    backend: Backend = "python"

    def pbtxt(self) -> str:
        """The file's text."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"name: {_quoted(self.name)}"
        yield f"backend: {_quoted(self.backend)}"
        yield f"max_batch_size: {self.max_batch_size}"
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                dims = ", ".join(map(str, tensor.dims))
                optional = "  optional: true" if tensor.optional and kind == "input" else ""
                fields = f"name: {_quoted(tensor.name)}  data_type: {tensor.data_type}  dims: [ {dims} ]{optional}"
                yield f"{kind} {{ {fields} }}"
        if self.queue_delay_us is not None:
            yield f"dynamic_batching {{ max_queue_delay_microseconds: {self.queue_delay_us} }}"
        if self.decoupled:
            yield "model_transaction_policy { decoupled: true }"
        kind = "KIND_GPU" if self.on_gpu else "KIND_CPU"
        yield f"instance_group {{ count: {self.instances}  kind: {kind} }}"
        for key, value in self.parameters.items():
            yield f"parameters {{ key: {_quoted(key)}  value {{ string_value: {_quoted(value)} }} }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format, whose escapes JSON's are among."""
    return json.dumps(text, ensure_ascii=False)
