"""The rule that finds a checkpoint's prompt template."""

from __future__ import annotations

import pytest

from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.presets import DEEPSEEK_TOKENS, INTERNVL_TOKENS, QWQ_TOKENS
from r1v_export.checkpoint.template import choose_template
from r1v_export.reference.prompt import TEMPLATES

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
    assert choose_template(Section(config, "config.json"), tokens) == template
    assert template in TEMPLATES
