"""Running a tool: an error of the user becomes one sentence."""

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

from mmefficientmod.checkpoint.entry import protect
from mmefficientmod.cli.arguments import COMMON
from mmefficientmod.cli.errors import user_message
from mmefficientmod.engine import distributed
from mmefficientmod.engine.console import silence_noise

# Exit codes: argparse's for a wrong command line, a shell's for Ctrl-C.
USER_ERROR, INTERRUPTED = 2, 130


def run(main: Callable[[Sequence[str] | None], Any]) -> None:
    """Run the ``main`` function of a tool.

    An error that the user can correct is printed as one sentence, after its
    traceback if the command line has ``--traceback``; the exit code is 2.
    Ctrl-C exits with 130. Any other error keeps its traceback. MMEngine reads
    checkpoints by the reader of this package, which runs no code in them.

    Args:
        main: Takes the arguments, None for those of the command line.
    """
    silence_noise()
    protect()
    try:
        main(None)
        distributed.stop()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        if COMMON.parse_known_args()[0].traceback:
            traceback.print_exc()
        print(f'error: {message}', file=sys.stderr)
        sys.exit(USER_ERROR)


@contextlib.contextmanager
def remove_if_failed(work_dir: str) -> Iterator[None]:
    """Remove the work dir of a run that fails before its first checkpoint.

    It stays if it existed before, if it holds a checkpoint, or if the error
    is not the user's, since its log helps to find a bug.

    Args:
        work_dir: The folder.
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
            _close_log_files(folder)
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _close_log_files(folder: Path) -> None:
    """Close the log files in a folder, and no others of the process."""
    for logger in logging.Logger.manager.loggerDict.values():
        if not isinstance(logger, logging.Logger):  # only a parent's name
            continue
        for handler in list(logger.handlers):
            if (
                isinstance(handler, logging.FileHandler)
                and folder.resolve() in Path(handler.baseFilename).parents
            ):
                handler.close()
                logger.removeHandler(handler)
