"""Which prompt template a checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Mapping

from r1v_export.checkpoint.config_section import Section

_DEEPSEEK_USER = "<｜User｜>"
_THINK = "<think>"
_OWN_NAMES = ("r1v1", "r1v2", "r1v3")


def choose_template(config: Section, tokens: Mapping[str, int]) -> str:
    """The name of the template in `reference.prompt.TEMPLATES`.

    A checkpoint says it plainly when its `template` key is one of those names. The published values of that key
    differ between repositories of one version, so what the tokenizer holds decides for the rest:

    1. DeepSeek's `<｜User｜>` is an added token: `r1v1` (base DeepSeek-R1-Distill-Qwen).
    2. `<think>` is an added token: `r1v2` (base QwQ).
    3. the configuration bears Skywork's name: `r1v3` (base InternVL3, whose tokenizer has neither).
    4. else it is an InternVL: `internvl2_5`, and a `template` key that says otherwise is refused.
    """
    declared = config.get("template")
    if declared in _OWN_NAMES:
        return declared
    if _DEEPSEEK_USER in tokens:
        return "r1v1"
    if _THINK in tokens:
        return "r1v2"
    if _is_skywork(config):
        return "r1v3"
    if declared not in (None, "internvl2_5"):
        raise config.wrong("template", f"internvl2_5, {', '.join(_OWN_NAMES)}", declared, "set one of these")
    return "internvl2_5"


def _is_skywork(config: Section) -> bool:
    marks = (config.get("model_type"), config.get("architectures"), config.get("template"), config.get("auto_map"))
    return "skywork" in str(marks).lower()
