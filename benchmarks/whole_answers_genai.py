"""Runs in OpenVINO GenAI's own environment: makes the models that its VLM pipeline reads. See whole_answers.py.

    ENVIRONMENT/bin/python whole_answers_genai.py MODEL.gguf GRAPHS OUT

The language model and the tokenizer are those that GenAI itself makes of the GGUF file, cut between the embeddings and
the first layer; the tower and the projector are our ONNX graphs (GRAPHS), joined, weights in 16 bits. The random
model's tokenizer merges nothing, which GenAI's fails on: it is given a merge of two bytes that no prompt has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
import openvino_tokenizers  # noqa: F401  openvino then knows the operators of tokenizers
from openvino import opset13

IMAGE_SIZE, PATCH_SIZE = 448, 14
CONFIG = {"model_type": "internvl_chat"}
PREPROCESSOR = {
    "size": {"shortest_edge": IMAGE_SIZE},
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "patch_size": PATCH_SIZE,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


CORE = openvino.Core()
"""Lives longer than the models: their operators of tokenizers are code that it loads."""


def language_model(gguf: Path, out: Path) -> None:
    """Write the embeddings and the decoder apart."""
    link = out / "model.gguf"
    link.unlink(missing_ok=True)
    link.hardlink_to(gguf)
    openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)  # writes it next to the file
    link.unlink()
    model = CORE.read_model(out / "openvino_model.xml")
    ids = model.input("input_ids")
    (convert,) = (each.get_node() for each in ids.get_target_inputs() if each.get_node().get_type_name() == "Convert")
    (gather,) = (each.get_node() for each in convert.output(0).get_target_inputs())
    embeds = opset13.parameter(gather.output(0).partial_shape, openvino.Type.f32)
    embeds.set_friendly_name("inputs_embeds")  # by which GenAI's paged attention knows it
    embeds.output(0).set_names({"inputs_embeds"})
    for each in gather.output(0).get_target_inputs():
        each.replace_source_output(embeds.output(0))
    for each in ids.get_target_inputs():  # the number of rows, which embeddings begin with too
        if each.get_node().get_type_name() == "ShapeOf":
            each.replace_source_output(embeds.output(0))
    table = openvino.Model([gather.output(0)], [ids.get_node()], "embeddings")
    ids.set_names({"input"})
    table.output(0).set_names({"inputs_embeds"})
    openvino.save_model(table, out / "openvino_text_embeddings_model.xml", compress_to_fp16=True)
    model.remove_parameter(ids.get_node())
    model.add_parameters([embeds])
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, out / "openvino_language_model.xml", compress_to_fp16=True)
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (out / name).unlink()


def give_a_merge(out: Path) -> None:
    """Let the tokenizer join two null bytes, as the last token of the vocabulary that stands for nothing."""
    path = out / "openvino_tokenizer.xml"
    model = CORE.read_model(path)
    (tokenizer,) = (each for each in model.get_ops() if each.get_type_name() == "BPETokenizer")
    begins, ends, texts = (tokenizer.input_value(index).get_node().data for index in range(5, 8))
    words = [texts[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)]
    unused = max(index for index, word in enumerate(words) if word.startswith(b"[PAD"))
    begins, ends = begins.copy(), ends.copy()
    begins[unused], ends[unused] = len(texts), len(texts) + 2
    null = [np.array([0], np.int32), np.array([1], np.int32), np.zeros(1, np.uint8)]
    given = [begins, ends, np.concatenate([texts, np.zeros(2, np.uint8)]), *null, *null]
    for index, values in enumerate(given, 5):
        tokenizer.input(index).replace_source_output(opset13.constant(values).output(0))
    openvino.save_model(model, out / "unfinished.xml", compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        (out / f"unfinished{suffix}").replace(path.with_suffix(suffix))


def vision(graphs: Path, out: Path) -> None:
    """Write the tower and the projector as one model."""
    tower, projector = (CORE.read_model(graphs / f"{name}.onnx") for name in ("vision", "projector"))
    features = tower.output(0).get_node().input_value(0)
    for each in projector.input(0).get_target_inputs():
        each.replace_source_output(features)
    joined = openvino.Model([projector.output(0).get_node().input_value(0)], tower.get_parameters(), "vision")
    joined.input(0).set_names({"pixel_values"})
    joined.output(0).set_names({"last_hidden_state"})
    openvino.save_model(joined, out / "openvino_vision_embeddings_model.xml", compress_to_fp16=True)


def main(gguf: Path, graphs: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    language_model(gguf, out)
    give_a_merge(out)
    vision(graphs, out)
    (out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 151645}), encoding="utf-8")
    (out / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")  # last: it says that all is there


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
