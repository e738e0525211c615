"""Asks a Triton server over gRPC, in the environment that has tritonclient; requests and responses are JSON.

Usage: python grpc_client.py PORT, and on stdin
{"requests": [{"id", "text_input", "images", "sampling_parameters", "outputs"}], "cancel_after": N or null}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from queue import Queue

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

SECONDS = 60


def text(name: str, *values: str | bytes) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, dtype=np.object_))
    return tensor


def inputs_of(request: dict) -> list[grpc.InferInput]:
    inputs = [text("text_input", request["text_input"])]
    if request["images"]:
        inputs.append(text("image", *(Path(path).read_bytes() for path in request["images"])))
    return [*inputs, text("sampling_parameters", json.dumps(request["sampling_parameters"]))]


def main() -> None:
    asked = json.load(sys.stdin)
    responses: Queue = Queue()
    client = grpc.InferenceServerClient(f"127.0.0.1:{sys.argv[1]}")
    client.start_stream(lambda result, error: responses.put((result, error)))
    for request in asked["requests"]:
        client.async_stream_infer(
            "r1v",
            inputs_of(request),
            request_id=request["id"],
            outputs=[grpc.InferRequestedOutput(name) for name in request["outputs"]],
            enable_empty_final_response=True,
        )
    answers = {
        request["id"]: {"reasoning": "", "text": "", "tokens": [], "finish_reason": "", "usage": ""}
        for request in asked["requests"]
    }
    order: list[str] = []
    errors: list[str] = []  # they do not say whose they are
    unfinished = set(answers)
    while unfinished:
        result, error = responses.get(timeout=SECONDS)
        if error is not None:
            errors.append(error.message())
            if len(errors) == len(unfinished):
                break
            continue
        response = result.get_response()
        if response.parameters["triton_final_response"].bool_param:
            unfinished.remove(response.id)
            continue
        order.append(response.id)
        answer = answers[response.id]
        if (token_ids := result.as_numpy("token_ids")) is not None:
            answer["tokens"].append(token_ids.tolist())
        for output, field in (("reasoning_output", "reasoning"), ("text_output", "text")):
            if (text := result.as_numpy(output)) is not None:
                answer[field] += text[0].decode()
        for field in ("finish_reason", "usage"):
            if (last := result.as_numpy(field)) is not None:
                answer[field] = last[0].decode()
        if asked["cancel_after"] is not None and len(order) >= asked["cancel_after"]:
            client.stop_stream(cancel_requests=True)
            break
    print(json.dumps({"answers": answers, "order": order, "errors": errors}))


if __name__ == "__main__":
    try:
        main()
    except InferenceServerException as error:
        sys.exit(str(error))
