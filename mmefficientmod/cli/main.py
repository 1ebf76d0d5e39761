"""Running a tool: an error that a user can mend becomes one sentence."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.datasets import DataError
from mmefficientmod.engine import distributed
from mmefficientmod.engine.console import silence_noise

# What a user did wrong or lacks, as opposed to a fault of ours.
USER_ERRORS = (CheckpointError, ConfigError, DataError)
# Where MMEngine builds what a config names.
REGISTRY = 'mmengine.registry.build_functions'


@contextlib.contextmanager
def remove_if_failed(work_dir: str) -> Iterator[None]:
    """Leave no work dir behind of a run that failed before its first result.

    A folder that was there before, or that holds a checkpoint, stays; so
    does one with the log of an error that is not a user's.
    """
    folder = Path(work_dir)
    existed = folder.exists()
    try:
        yield
    except Exception as error:
        if (
            not existed
            and user_message(error) is not None
            and is_main_process()
            and not any(folder.rglob('*.pth'))
        ):
            _close_log_files()
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _close_log_files() -> None:
    for logger in logging.Logger.manager.loggerDict.values():
        for handler in list(getattr(logger, 'handlers', [])):
            if isinstance(handler, logging.FileHandler):
                handler.close()
                logger.removeHandler(handler)


def run(main: Callable[[Sequence[str] | None], Any]) -> None:
    """Run a tool's ``main``; what a user can mend ends in one sentence.

    Exits with 2 for such an error, with 130 for Ctrl-C.
    """
    silence_noise()
    try:
        main(None)
        distributed.stop()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f'error: {message}', file=sys.stderr)
        sys.exit(2)


def user_message(error: BaseException | None) -> str | None:
    """The message for a user, if the cause of an error is one of theirs.

    A worker process adds a stack trace to the message, which is taken off.
    What MMEngine's registry or a model of ours says of its arguments is a
    user's, too.
    """
    while error is not None:
        if isinstance(error, USER_ERRORS):
            text = str(error)
            for kind in USER_ERRORS:
                text = text.split(f'{kind.__name__}: ')[-1]
            return text.strip()
        if isinstance(error, (TypeError, ValueError, KeyError)):
            where = _raised_in(error)
            if where.startswith(('mmefficientmod.models', REGISTRY)):
                return str(error).strip('"')
        error = error.__cause__
    return None


def _raised_in(error: BaseException) -> str:
    """The module whose code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get('__name__', '') if frames else ''
