"""Configuration of a Skywork-R1V or InternVL in the `internvl_chat` layout, for runtimes that read it by transformers.

Written by r1v-export, which copies this file next to checkpoints and never runs it. Nothing here changes a value.
"""

from typing import Any

from transformers import PretrainedConfig, Qwen2Config


class SkyworkChatConfig(PretrainedConfig):
    model_type = "skywork_chat"

    def __init__(self, vision_config: Any = None, llm_config: Any = None, **kwargs: Any) -> None:
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        return self.llm_config


class InternVLChatConfig(SkyworkChatConfig):
    model_type = "internvl_chat"

    # transformers 5 gives a class without an __init__ one that assigns fields as they are.
    def __init__(self, vision_config: Any = None, llm_config: Any = None, **kwargs: Any) -> None:
        super().__init__(vision_config, llm_config, **kwargs)
