"""Configurations of the family and its relatives, as published: each opens as it should, or is refused for its reason.

`published/*.json` holds a config.json, the names and shapes that the published classes have for it (`{i}` counts
layers), and which added tokens its tokenizer has. Weight files are headers over holes, so that 38B take no disk.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.presets import DEEPSEEK_TOKENS, INTERNVL_TOKENS, QWQ_TOKENS
from r1v_export.checkpoint.synth_files import byte_tokenizer
from r1v_export.errors import CheckpointError

PUBLISHED = Path(__file__).parent / "published"
CHATML = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
TOKENIZERS = {
    "internvl": INTERNVL_TOKENS,
    "internvl+think": INTERNVL_TOKENS | {"<think>": 151674, "</think>": 151675},
    "internvl2": CHATML | {"<img>": 151646, "</img>": 151647, "<IMG_CONTEXT>": 151648},
    "deepseek": DEEPSEEK_TOKENS,
    "qwq": QWQ_TOKENS,
    "qwen3": QWQ_TOKENS,
    "internlm": None,  # a sentencepiece model, in none of the files that are read
}


class Opens(NamedTuple):
    template: str
    reason: str
    rope: str | None = None
    system_message: str | None = None


class Refused(NamedTuple):
    what: str
    found: str


DYNAMIC = "dynamic"
DECLARED = "config.json declares template internvl2_5"
LANGUAGE_MODEL = "language model is not supported"
OUTCOMES: dict[str, Opens | Refused] = {
    "InternVL-Chat-V1-2": Refused(LANGUAGE_MODEL, "LlamaForCausalLM"),
    "InternVL2-1B": Refused("template cannot be used", "'Hermes-2'"),
    "InternVL2-26B-AWQ": Refused(LANGUAGE_MODEL, "InternLM2ForCausalLM"),
    "InternVL2-2B_finetune": Refused(LANGUAGE_MODEL, "InternLM2ForCausalLM"),
    "InternVL2_5-1B_other_class": Refused("architecture is not supported", "InternVL2_5ForConditionalGeneration"),
    "InternVL2_5-2B": Refused(LANGUAGE_MODEL, "InternLM2ForCausalLM"),
    "InternVL2_5-38B": Opens("internvl2_5", DECLARED),
    "InternVL2_5-38B-AWQ": Opens("internvl2_5", DECLARED),
    "InternVL2_5-4B": Opens("internvl2_5", DECLARED),
    "InternVL2_5-8B-AWQ": Refused(LANGUAGE_MODEL, "InternLM2ForCausalLM"),
    "InternVL2_5-8B_finetune": Refused(LANGUAGE_MODEL, "InternLM2ForCausalLM"),
    "InternVL3-1B": Opens("internvl2_5", DECLARED, DYNAMIC),
    "InternVL3-1B-Pretrained": Opens("internvl2_5", DECLARED, DYNAMIC),
    "InternVL3-1B_finetune_with_think_tokens": Opens("internvl2_5", DECLARED, DYNAMIC),
    "InternVL3-1B_system_message": Opens("internvl2_5", DECLARED, DYNAMIC, "You are a radiologist."),
    "InternVL3_5-1B": Refused(LANGUAGE_MODEL, "Qwen3ForCausalLM"),
    "InternVL3_5-1B_native": Refused(LANGUAGE_MODEL, "Qwen3ForCausalLM"),
    "InternVL3_5-30B-A3B": Refused(LANGUAGE_MODEL, "Qwen3MoeForCausalLM"),
    "InternVL3_5-8B": Refused(LANGUAGE_MODEL, "Qwen3ForCausalLM"),
    "InternViT-6B_alone": Refused("architecture is not supported", "InternVisionModel"),
    "Skywork-R1V-38B_like": Opens("r1v1", "a Skywork-R1V whose tokenizer has <｜User｜>, as R1V1's"),
    "Skywork-R1V2-38B_like": Opens("r1v2", "a Skywork-R1V whose tokenizer has <think>, as R1V2's"),
    "Skywork-R1V3-38B_like": Opens(
        "r1v3", "a Skywork-R1V whose tokenizer has neither <｜User｜> nor <think>, as R1V3's"
    ),
    "tiny-processor-internvl": Opens(
        "internvl2_5", "config.json declares an InternVL architecture and no template", DYNAMIC
    ),
}


def write(folder: Path, name: str) -> None:
    published = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(published["config"]))
    tokens = TOKENIZERS[published["tokenizer"]]
    if tokens is not None:
        (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(tokens)))
    tensors = published.get("tensors") or {"some.weight": [1, [1]]}
    write_hollow(folder / "model.safetensors", expand(tensors))


def expand(tensors: dict[str, Any]) -> dict[str, list[int]]:
    return {pattern.replace("{i}", str(i)): shape for pattern, (count, shape) in tensors.items() for i in range(count)}


def write_hollow(path: Path, shapes: dict[str, list[int]]) -> None:
    """A weight file of the true size that takes no disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        packed = name.endswith((".qweight", ".qzeros"))
        dtype, size = ("I32", 4) if packed else ("F16" if name.endswith(".scales") else "BF16", 2)
        end = offset + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


@pytest.mark.parametrize(("name", "outcome"), OUTCOMES.items(), ids=list(OUTCOMES))
def test_a_published_configuration_opens_or_is_refused_for_its_reason(tmp_path, name, outcome):
    write(tmp_path, name)
    if isinstance(outcome, Refused):
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(tmp_path)
        assert outcome.what in caught.value.what
        assert outcome.found in str(caught.value.found)
        return
    checkpoint = Checkpoint.open(tmp_path)
    spec = checkpoint.spec
    rope = spec.language.rope_scaling
    opened = (spec.template, checkpoint.template_reason, rope and rope.type, spec.system_message)
    assert opened == outcome
    assert checkpoint.warnings == ()


def test_every_handed_configuration_has_its_outcome():
    assert {path.stem for path in PUBLISHED.glob("*.json")} == set(OUTCOMES)
