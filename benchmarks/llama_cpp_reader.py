"""Runs in llama.cpp's own environment: loads two GGUF files and answers a job's questions. See llama_cpp_oracle.py.

    ENVIRONMENT/bin/python llama_cpp_reader.py JOB.json ANSWERS.json

JOB: {"model", "mmproj", "max_tokens", "questions": [{"before", "after", "image"}]}, the image's tokens standing between
the two texts. ANSWERS: tokens of every question, ids of its texts and how many tokens its prompt has; or the error.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import traceback
import urllib.request
from pathlib import Path
from typing import Any


def answer(job: dict[str, Any]) -> dict[str, Any]:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.mmproj.path = job["model"], job["mmproj"]
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 2048, 1, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # its threads spin
    parameters.verbosity = job.get("verbosity", parameters.verbosity)
    server = xllamacpp.Server(parameters)

    def call(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    marker = call("/props")["media_marker"]
    answers = []
    for question in job["questions"]:
        image = base64.b64encode(Path(question["image"]).read_bytes()).decode()
        prompt = {
            "prompt_string": question["before"] + marker + question["after"],
            "multimodal_data": [image],
        }
        body = {"prompt": prompt, "temperature": 0, "n_predict": job["max_tokens"], "return_tokens": True}
        found = call("/completion", body | {"cache_prompt": False})
        texts = [
            call("/tokenize", {"content": question[part], "parse_special": True, "add_special": False})["tokens"]
            for part in ("before", "after")
        ]
        answers.append({"tokens": found["tokens"], "prompt_tokens": found["tokens_evaluated"], "texts": texts})
    return {"answers": answers}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        result = answer(job)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)  # the server's threads do not end by themselves


if __name__ == "__main__":
    main()
