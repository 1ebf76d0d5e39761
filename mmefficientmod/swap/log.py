"""The log of a swap."""

from __future__ import annotations

import logging

from mmengine.logging import print_log


def log_change(text: str, level: int = logging.INFO) -> None:
    """Log a change of the config besides the channels.

    Args:
        text: What changes.
        level: Level of the message. Default: ``logging.INFO``.
    """
    print_log(f'swap_backbone: {text}', logger='current', level=level)
