"""Skywork-R1V-class vision-language models, from checkpoint to proven production engines."""

__version__ = "0.1.0"
