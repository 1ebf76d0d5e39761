"""What a swap changes is logged."""

from __future__ import annotations

import logging

from mmengine.logging import print_log


def log_change(text: str, level: int = logging.INFO) -> None:
    print_log(f'swap_backbone: {text}', logger='current', level=level)
