"""The rule that finds a checkpoint's prompt template."""

from __future__ import annotations

import re

import pytest

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.presets import DEEPSEEK_TOKENS, INTERNVL_TOKENS, QWQ_TOKENS
from r1v_export.checkpoint.template import choose_template
from r1v_export.errors import CheckpointError
from r1v_export.processing.prompt import TEMPLATES

SKYWORK = {"architectures": ["SkyworkR1VChatModel"], "model_type": "skywork_chat"}
INTERNVL = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat"}


@pytest.mark.parametrize(
    ("config", "tokens", "template"),
    [
        (SKYWORK, DEEPSEEK_TOKENS, "r1v1"),
        (SKYWORK, QWQ_TOKENS, "r1v2"),
        (SKYWORK, INTERNVL_TOKENS, "r1v3"),
        (SKYWORK | {"template": "internvl2_5"}, INTERNVL_TOKENS, "r1v3"),
        (SKYWORK | {"template": "skywork-r1v3"}, INTERNVL_TOKENS, "r1v3"),
        (SKYWORK | {"template": "skywork-r1v"}, QWQ_TOKENS, "r1v2"),
        (SKYWORK | {"template": "skywork-r1v3"}, QWQ_TOKENS, "r1v3"),
        (INTERNVL | {"template": "skywork-r1v"}, INTERNVL_TOKENS, "r1v3"),
        (INTERNVL | {"template": "internvl2_5"}, INTERNVL_TOKENS | {"<think>": 151674}, "internvl2_5"),
        (INTERNVL, INTERNVL_TOKENS | {"<think>": 151674}, "internvl2_5"),
        (INTERNVL | {"auto_map": {"AutoModel": "modeling_skywork_chat.SkyworkChatModel"}}, INTERNVL_TOKENS, "r1v3"),
        (INTERNVL, DEEPSEEK_TOKENS, "r1v1"),
        (INTERNVL, INTERNVL_TOKENS, "internvl2_5"),
        (INTERNVL | {"template": "internvl2_5"}, INTERNVL_TOKENS, "internvl2_5"),
        ({"architectures": ["InternVLForConditionalGeneration"]}, INTERNVL_TOKENS, "internvl2_5"),
        (INTERNVL | {"template": "r1v3"}, INTERNVL_TOKENS, "r1v3"),
        (SKYWORK | {"template": "r1v3"}, QWQ_TOKENS, "r1v3"),
    ],
)
def test_the_template_follows_from_configuration_and_tokens(config, tokens, template):
    choice = choose_template(Section(config, "config.json"), tokens)
    assert choice.name == template
    assert choice.reason
    assert template in TEMPLATES


@pytest.mark.parametrize("base", [SKYWORK, INTERNVL])
@pytest.mark.parametrize("name", ["Hermes-2", "internlm2-chat", "vicuna", "skywork-r1v4", 3, ["r1v3"]])
def test_another_template_is_refused_by_name(base, name):
    with pytest.raises(CheckpointError, match=r"(?s)template cannot be used.*internvl2_5.*" + re.escape(repr(name))):
        choose_template(Section(base | {"template": name}, "config.json"), INTERNVL_TOKENS)


def test_the_reason_names_what_decided():
    by_name = choose_template(Section(INTERNVL | {"template": "internvl2_5"}, "config.json"), QWQ_TOKENS)
    by_tokens = choose_template(Section(SKYWORK, "config.json"), QWQ_TOKENS)
    assert by_name.reason == "config.json declares template internvl2_5"
    assert by_tokens.reason == "a Skywork-R1V whose tokenizer has <think>, as R1V2's"
