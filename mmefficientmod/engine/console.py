"""What a run shows in the terminal, and what is in its log file alone."""

from __future__ import annotations

import logging
import re
import warnings

# Messages of the libraries that a user can do nothing about, each a regular
# expression and a category of warnings. A warning must match from its start,
# a log entry anywhere.
NOISE: tuple[tuple[str, type[Warning]], ...] = (
    ('pkg_resources is deprecated', Warning),
    (r'`torch\.jit\.', DeprecationWarning),
    ('invalid escape sequence', DeprecationWarning),
    ('``MultiScaleDeformableAttention`` has been moved', Warning),
    ('`reduce_zero_label` will be deprecated', Warning),
    ('``build_loss`` would be deprecated', Warning),
    ('"FileClient" will be deprecated', Warning),
    ('"HardDiskBackend" is the alias', Warning),
    ('in the "function" registry tree', Warning),
    ('The prefix is not set in metric class', Warning),
    ('Default ``avg_non_ignore`` is False', Warning),
    ('The draw is False, it means', Warning),
    ('Setting [A-Z]+_NUM_THREADS environment variable', Warning),
    ('`broadcast_buffers` is deprecated', Warning),
    ('FSDP.state_dict_type', Warning),
    ('Grad strides do not match bucket view strides', Warning),
    ('faster_coco_eval is not installed', Warning),
    ("'pin_memory' argument is set as true", Warning),
)
# Beginnings of log entries that the terminal does not show.
LOG_FILE_ONLY = (
    '----', 'Config:', 'Distributed training is not used, all SyncBatchNorm',
    'Exp name:', 'Hooks will be', 'num_workers=', 'paramwise_options',
)  # fmt: skip
# In a table with a row for each class, the row of a class that is neither in
# the ground truth nor predicted: all values are nan.
EMPTY_ROW = re.compile(r'\| *([^|]*?) *(\| *nan *)+\|\s*$')


def silence_noise() -> None:
    """Ignore the warnings in ``NOISE``, in the whole process."""
    for message, category in NOISE:
        warnings.filterwarnings('ignore', message, category)


def show_progress(logger: logging.Logger) -> None:
    """Keep ``LOG_FILE_ONLY`` out of the terminal, and drop ``NOISE``.

    The terminal shows all warnings and errors that are not in ``NOISE``.

    Args:
        logger: The logger of a run, with its handlers.
    """
    drop_noise(logger)
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_progress)


def drop_noise(logger: logging.Logger) -> None:
    """Keep the messages in ``NOISE`` out of a logger, and shorten tables.

    Classes whose row in a table is empty are named below it.

    Args:
        logger: The logger.
    """
    logger.addFilter(_remove_noise)


def _remove_noise(record: logging.LogRecord) -> bool:
    lines = str(record.msg).splitlines()
    empty = [found[1] for found in map(EMPTY_ROW.match, lines) if found]
    if empty:
        rest = [line for line in lines if not EMPTY_ROW.match(line)]
        rest.append(
            f'{len(empty)} classes are neither in the ground truth nor '
            f'predicted, and have no row: {", ".join(empty)}'
        )
        record.msg = '\n'.join(rest)
    return not any(re.search(noise, str(record.msg)) for noise, _ in NOISE)


def _is_progress(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().lstrip(
        '\n'
    ).startswith(LOG_FILE_ONLY)
