"""Which prompt template a checkpoint was trained with."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from r1v_export.checkpoint.config_section import Section

_DEEPSEEK_USER = "<｜User｜>"
_CHATML_START = "<|im_start|>"
_THINK = "<think>"
_OWN_NAMES = ("r1v1", "r1v2", "r1v3")
_INTERNVL = "internvl2_5"
_SKYWORK_NAME = re.compile(r"skywork[-_]?(r1v)?(?P<version>[123])?")


class TemplateChoice(NamedTuple):
    """A template and why it was chosen."""

    name: str
    """In `processing.prompt.TEMPLATES`."""
    reason: str


def choose_template(config: Section, tokens: Collection[str]) -> TemplateChoice:
    """The prompt template: by the declared name and the architecture, and by the tokenizer where both leave it open.

    Args:
        config: config.json.
        tokens: the tokenizer's added tokens.

    1. `template` is one of our names, or Skywork's with a version: that one.
    2. Skywork's architecture, or its name in `template` or `auto_map`: its three versions share both, so the tokenizer
       decides. DeepSeek's `<｜User｜>`: `r1v1`; `<think>`: `r1v2`; neither, as InternVL3's: `r1v3`.
    3. An InternVL without `template` whose tokenizer is DeepSeek's and cannot write another: `r1v1`.
    4. Any other InternVL: `internvl2_5`, whatever tokens were added to its tokenizer.

    Raises:
        CheckpointError: `template` is a name that is not known.
    """
    declared = config.get("template")
    skywork = _SKYWORK_NAME.fullmatch(declared) if isinstance(declared, str) else None
    if declared in _OWN_NAMES:
        return TemplateChoice(str(declared), f"config.json declares template {declared}")
    if skywork and skywork["version"]:
        return TemplateChoice(f"r1v{skywork['version']}", f"config.json declares template {declared}")
    if not skywork and declared not in (None, _INTERNVL):
        expected = ", ".join((_INTERNVL, "skywork-r1v", *_OWN_NAMES))
        fix = "set template in config.json to the one of these that the model was trained with"
        raise config.wrong("template", expected, declared, fix)
    if skywork or _is_skywork(config):
        return _by_tokens(tokens)
    if declared is None and _DEEPSEEK_USER in tokens and _CHATML_START not in tokens:
        return TemplateChoice("r1v1", f"the tokenizer has {_DEEPSEEK_USER} and no {_CHATML_START}")
    source = f"template {declared}" if declared else "an InternVL architecture and no template"
    return TemplateChoice(_INTERNVL, f"config.json declares {source}")


def _by_tokens(tokens: Collection[str]) -> TemplateChoice:
    if _DEEPSEEK_USER in tokens:
        return TemplateChoice("r1v1", f"a Skywork-R1V whose tokenizer has {_DEEPSEEK_USER}, as R1V1's")
    if _THINK in tokens:
        return TemplateChoice("r1v2", f"a Skywork-R1V whose tokenizer has {_THINK}, as R1V2's")
    return TemplateChoice("r1v3", f"a Skywork-R1V whose tokenizer has neither {_DEEPSEEK_USER} nor {_THINK}, as R1V3's")


def _is_skywork(config: Section) -> bool:
    marks = (config.get("model_type"), config.get("architectures"), config.get("auto_map"))
    return "skywork" in str(marks).lower()
