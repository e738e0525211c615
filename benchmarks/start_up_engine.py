"""A peer of `start_up.py`: reads a prompt's text from stdin, and prints the text of the token behind it.

    python start_up_engine.py KIND MODEL THREADS CONTEXT IDS

KIND: `genai` (MODEL is a folder of its builder) or `llama` (a GGUF file). IDS: of the prompt's tokens as ours makes
them, separated by commas. A peer that makes others fails; llama.cpp says only how many they are.
"""

from __future__ import annotations

import json
import sys


def genai(model: str, threads: int, context: int, text: str, expected: list[int]) -> str:
    """onnxruntime-genai's tokenizer and generator."""
    import onnxruntime_genai as og

    config = og.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    opened = og.Model(config)
    tokenizer = og.Tokenizer(opened)
    ids = tokenizer.encode(text)
    assert ids.tolist() == expected
    parameters = og.GeneratorParams(opened)
    parameters.set_search_options(max_length=context, do_sample=False, past_present_share_buffer=True)
    generator = og.Generator(opened, parameters)
    generator.append_tokens(ids)
    generator.generate_next_token()
    return str(tokenizer.create_stream().decode(generator.get_next_tokens()[0]))


def llama(model: str, threads: int, context: int, text: str, expected: list[int]) -> str:
    """llama.cpp's server in this process."""
    import urllib.request

    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.warmup = False
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = model, context, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    body = json.dumps({"prompt": text, "n_predict": 1, "temperature": 0, "ignore_eos": True})
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + "/completion", body.encode(), headers)
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    assert answer["timings"]["prompt_n"] == len(expected), answer["timings"]
    return str(answer["content"])


def main(kind: str, model: str, threads: int, context: int, expected: list[int]) -> None:
    token = {"genai": genai, "llama": llama}[kind](model, threads, context, sys.stdin.read(), expected)
    print(json.dumps({"token": token}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), [int(id_) for id_ in sys.argv[5].split(",")])
