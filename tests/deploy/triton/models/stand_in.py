"""What the models use of Triton's Python backend, where no server is needed, or none can have what they run."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np

LOGGED: list[str] = []
"""What models wrote into the server's log."""


class TritonError(NamedTuple):
    text: str
    code: str

    def message(self) -> str:
        return self.text


TritonError.INTERNAL, TritonError.INVALID_ARG, TritonError.UNAVAILABLE = "INTERNAL", "INVALID_ARG", "UNAVAILABLE"


class Tensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        assert isinstance(value, np.ndarray)
        self._name, self._value = name, value

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._value


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class MetricFamily:
    GAUGE = "gauge"
    shown: ClassVar[dict[str, float]]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> MetricFamily:  # noqa: N802
        return self

    def set(self, value: float) -> None:
        self.shown[self.name] = value


def backend() -> SimpleNamespace:
    return SimpleNamespace(
        Tensor=Tensor,
        InferenceResponse=InferenceResponse,
        TritonError=TritonError,
        Logger=SimpleNamespace(log_info=lambda message: LOGGED.append(message)),
        MetricFamily=type("MetricFamily", (MetricFamily,), {"shown": {}}),
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
    )


class Request:
    """One request, and the sender of its responses."""

    def __init__(self, request_id: str = "", **inputs: np.ndarray) -> None:
        self.inputs = {name: Tensor(name, value) for name, value in inputs.items()}
        self.id, self.responses, self.ended, self.cancelled = request_id, [], threading.Event(), False

    def request_id(self) -> str:
        return self.id

    def get_response_sender(self) -> Request:
        return self

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: Any = None, flags: int = 0) -> None:
        if response is not None:
            self.responses.append(response)
        if flags:
            self.ended.set()

    def token_ids(self) -> tuple[int, ...]:
        """Of all responses, once the last has come."""
        assert self.ended.wait(60)
        assert [response.error for response in self.responses if response.error] == []
        return tuple(int(id_) for response in self.responses for id_ in response.outputs["token_ids"])


def arguments(deployment: Path, model: str) -> dict[str, str]:
    """What Triton gives a model of a deployment when it is loaded."""
    text = (deployment / "models" / model / "config.pbtxt").read_text("utf-8")
    pairs = re.findall(r'^parameters { key: "(.*?)"  value { string_value: "(.*?)" } }$', text, re.MULTILINE)
    found = {key: {"string_value": value} for key, value in pairs}
    return {
        "model_config": json.dumps({"parameters": found}),
        "model_repository": str(deployment / "models" / model),
    }
