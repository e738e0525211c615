"""Skywork-R1V-class vision-language models, from checkpoint to proven production engines."""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
