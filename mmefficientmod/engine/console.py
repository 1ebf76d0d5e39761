"""What a run shows in the terminal, and what only its log file has."""

from __future__ import annotations

import logging
import re
import warnings

# Notes of the libraries that a user can do nothing about, each where it
# arises. Everything else is shown.
NOISE = (
    dict(message='pkg_resources is deprecated'),
    dict(message=r'`torch\.jit\.', category=DeprecationWarning),
    dict(message='invalid escape sequence', category=DeprecationWarning),
    dict(message='``MultiScaleDeformableAttention`` has been moved'),
    dict(message='`reduce_zero_label` will be deprecated'),
    dict(message='``build_loss`` would be deprecated'),
    dict(message='"FileClient" will be deprecated'),
    dict(message='"HardDiskBackend" is the alias'),
    dict(message='in the "function" registry tree'),
    dict(message='The prefix is not set in metric class'),
    dict(message='Default ``avg_non_ignore`` is False'),
    dict(message='The draw is False, it means'),
    dict(message='Setting [A-Z]+_NUM_THREADS environment variable'),
    dict(message='`broadcast_buffers` is deprecated'),
    dict(message='FSDP.state_dict_type'),
    dict(message='Grad strides do not match bucket view strides'),
    dict(message='faster_coco_eval is not installed'),
    dict(message="'pin_memory' argument is set as true"),
)
# What stands in the log file alone.
NO_PROGRESS = (
    '----', 'Config:', 'Exp name:', 'Hooks will be', 'paramwise_options',
)  # fmt: skip
# A class that is neither in the data nor predicted.
EMPTY_ROW = re.compile(r'\|[^|]*(\| *nan *)+\|\s*$')


def silence_noise() -> None:
    """Ignore the warnings of the libraries that are listed here."""
    for noise in NOISE:
        warnings.filterwarnings('ignore', **noise)


def show_progress(logger: logging.Logger) -> None:
    """Keep what is no progress out of the terminal, and noise out of all."""
    quieten(logger)
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_progress)


def quieten(logger: logging.Logger) -> None:
    """Keep the notes in ``NOISE`` out of a logger."""
    logger.addFilter(_drop_noise)


def _drop_noise(record: logging.LogRecord) -> bool:
    lines = str(record.msg).splitlines(keepends=True)
    if len(lines) > 1:
        record.msg = ''.join(x for x in lines if not EMPTY_ROW.match(x))
    return not any(
        re.search(noise['message'], str(record.msg)) for noise in NOISE
    )


def _is_progress(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().lstrip(
        '\n'
    ).startswith(NO_PROGRESS)
