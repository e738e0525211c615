"""Log records that carry their numbers as fields as well as in their message."""

from __future__ import annotations

import logging
from typing import Any


def log_event(logger: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """Log a message made of named fields, which `--log-format json` and other handlers get one by one.

    Fields are names, counts, sizes and times of the work. What a user asks or shows (prompts, answers, images) is never
    logged.

    Args:
        message: names its fields as `%(stage)s: %(files)s`; numbers of things are a `Count`.
        fields: attributes of the record; numbers carry their unit in their name (`size_bytes`, `seconds`).
    """
    logger.log(level, message, fields, extra=fields, stacklevel=2)
