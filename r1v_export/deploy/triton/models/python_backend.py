"""What the Triton models share: Triton's Python module, reading inputs, writing outputs, and errors.

`triton_python_backend_utils` is in Triton's Python backend and nowhere else, so it is imported when a model is loaded.
Source: triton-inference-server/python_backend, README.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r1v_export.config import Device
from r1v_export.errors import InputError, QueueFullError, R1VError, UsageError

BUNDLE, TARGET, DEVICE, ENGINE = "bundle", "target", "device", "engine"
"""Parameters that every model has; the last only where a library decodes by itself: as `--engine` has it."""
VISION_TARGET = "vision_target"
"""Parameter of `r1v_vision`, and of libr1v's `r1v`: as `--vision-target` has it. Not where a library decodes."""
ENGINE_FOLDER = "engine"
"""The engine's folder, next to the model repository; `ENGINE` then is its place relative to that."""
MAX_ROWS, CACHE_MIB = "max_rows", "cache_mib"
"""Parameters of `r1v_llm`: requests that are answered together, and mebibytes of its key-value cache."""
TILES_AT_ONCE, IMAGE_CACHE_MIB = "tiles_at_once", "image_cache_mib"
"""Parameters of `r1v`: tiles that `r1v_vision` takes in one request, and mebibytes of kept image embeddings."""

FINAL = 1
"""Flag of a request's last response, TRITONSERVER_RESPONSE_COMPLETE_FINAL."""

_STATUSES = ("INVALID_ARG", "UNAVAILABLE", "INTERNAL")

_LOG = logging.getLogger(__name__)


def backend() -> Any:
    """Triton's own module, within the Python backend."""
    return importlib.import_module("triton_python_backend_utils")


def log(message: str) -> None:
    """Write a line into the server's log."""
    backend().Logger.log_info(message)


class ModelArguments:
    """What Triton gives a model when it is loaded.

    Args:
        arguments: of `initialize`.
    """

    def __init__(self, arguments: Mapping[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        self.parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self._model_folder = Path(arguments["model_repository"])

    @property
    def bundle(self) -> Path:
        """Folder of the bundle; the parameter is relative to the model repository."""
        folder = self._model_folder.parent / str(self.parameters[BUNDLE])
        return folder.resolve()

    @property
    def target(self) -> str | None:
        """The engine of the bundle, if one is named."""
        return self.parameters.get(TARGET)

    @property
    def engine(self) -> str | None:
        """The engine that a library decodes by itself, if there is one."""
        engine = self.parameters.get(ENGINE)
        return str((self._model_folder.parent / engine).resolve()) if engine == f"../{ENGINE_FOLDER}" else engine

    @property
    def device(self) -> Device:
        """Where it runs."""
        return "cuda" if self.parameters.get(DEVICE) == "cuda" else "cpu"


def array_input(request: Any, name: str) -> np.ndarray | None:
    """An input as an array, None if the request omits it."""
    tensor = backend().get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    array: np.ndarray = tensor.as_numpy()
    return array


def bytes_inputs(request: Any, name: str) -> list[bytes]:
    """The strings of an input, none if the request omits it."""
    array = array_input(request, name)
    return [] if array is None else [bytes(value) for value in array.reshape(-1)]


def text_input(request: Any, name: str) -> str | None:
    """The only string of an input, None if the request omits it or it is empty.

    Raises:
        InputError: several strings, or one that is not UTF-8.
    """
    values = bytes_inputs(request, name)
    if len(values) > 1:
        raise InputError("An input has more than one string.", where=name, expected=1, found=len(values))
    try:
        return values[0].decode() or None if values else None
    except UnicodeDecodeError as error:
        raise InputError("A text is not UTF-8.", where=f"{name}, byte {error.start}", found=error.reason) from error


def flag_input(request: Any, name: str, default: bool) -> bool:
    """A boolean input, `default` if the request omits it."""
    array = array_input(request, name)
    return default if array is None else bool(array.reshape(-1)[0])


def require_no_parameters(request: Any) -> None:
    """Refuse what a request says besides its inputs: `/generate` makes parameters of fields that are no inputs.

    Raises:
        InputError: it has a parameter that is not Triton's own.
    """
    given = json.loads(request.parameters() or "{}")
    if unknown := [name for name in given if not name.startswith("triton_")]:
        fix = "omit it; how tokens are chosen goes into sampling_parameters, as JSON"
        raise InputError("The request has an unknown field.", found=", ".join(map(str, unknown)), fix=fix)


def output(name: str, value: np.ndarray | str | int) -> Any:
    """An output tensor: an array, or one string or integer."""
    if isinstance(value, str):
        value = np.array([value.encode()], dtype=np.object_)
    elif isinstance(value, int):
        value = np.array([value], dtype=np.int64)
    return backend().Tensor(name, value)


def response(**tensors: np.ndarray | str | int) -> Any:
    """A response with these output tensors."""
    return backend().InferenceResponse([output(name, value) for name, value in tensors.items()])


class TritonModelError(Exception):
    """Another model's error, to be passed on as it is: Triton gives its text and not its status, which the text begins
    with.

    Args:
        error: Triton's.
    """

    def __init__(self, error: Any) -> None:
        status, _, text = str(error.message()).partition(": ")
        self.status, self.text = (status, text) if status in _STATUSES else ("INTERNAL", str(error.message()))
        super().__init__(self.text)


def error_response(error: Exception, status_in_text: bool = True) -> Any:
    """A response that is an error, with the status that says whose it is.

    Args:
        status_in_text: begin the text with the status, for a model that calls this one.
    """
    if isinstance(error, TritonModelError):
        status, message = error.status, error.text
    elif isinstance(error, InputError | UsageError):
        status, message = "INVALID_ARG", str(error)
    elif isinstance(error, R1VError):
        status, message = "UNAVAILABLE" if isinstance(error, QueueFullError) else "INTERNAL", str(error)
    else:
        _LOG.error("a request failed", exc_info=error)
        status, message = "INTERNAL", f"{type(error).__name__}: {error}"
    text = " ".join(message.split())
    code = getattr(backend().TritonError, status)
    return backend().InferenceResponse(
        output_tensors=[], error=backend().TritonError(f"{status}: {text}" if status_in_text else text, code)
    )
