"""Configuration of a Skywork-R1V or InternVL in the `internvl_chat` layout, for runtimes that read it by transformers.

Written by r1v-export, which copies this file next to checkpoints and never runs it. Nothing here changes a value.
"""

from transformers import PretrainedConfig, Qwen2Config


class SkyworkChatConfig(PretrainedConfig):
    model_type = "skywork_chat"

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
        super().__init__(**kwargs)

    def get_text_config(self, *args, **kwargs):
        return self.llm_config


class InternVLChatConfig(SkyworkChatConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **kwargs):  # transformers 5 makes one where there is none
        super().__init__(vision_config, llm_config, **kwargs)
