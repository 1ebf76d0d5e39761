"""Running a tool: an error of the user becomes one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import MMLogger

from mmefficientmod.checkpoint.entry import protect
from mmefficientmod.cli.arguments import COMMON
from mmefficientmod.cli.errors import user_message
from mmefficientmod.engine import distributed
from mmefficientmod.engine.console import silence_noise
from mmefficientmod.engine.distributed import failure_of_another

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
        _let_first_process_speak(error)
        if COMMON.parse_known_args()[0].traceback:
            traceback.print_exc()
        print(f'error: {message}', file=sys.stderr)
        sys.exit(USER_ERROR)


def _let_first_process_speak(error: Exception) -> None:
    """Wait while the launcher ends this process because another one failed.

    Processes that share a mistake would all print it, and those that wait for
    a process that failed would print that they do.

    Args:
        error: The error of this process.
    """
    if os.environ.get('WORLD_SIZE', '1') == '1':
        return
    if failure_of_another(error) or os.environ.get('RANK', '0') != '0':
        # engine/launch.py looks ten times a second, and a process takes
        # seconds to end on a machine that is busy.
        time.sleep(4)


@contextlib.contextmanager
def remove_if_failed(work_dir: str) -> Iterator[None]:
    """Remove what a run made that fails before its first checkpoint.

    That is its folder of logs, and the work dir if nothing else is in it than
    the config that the run wrote. All stays if the work dir existed before,
    if there is a checkpoint, or if the error is not the user's, since its log
    helps to find a bug.

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
            _remove_logs(folder)
            rest = list(folder.glob('*'))
            if all(x.suffix == '.py' and x.is_file() for x in rest):
                shutil.rmtree(folder, ignore_errors=True)
        raise


def _remove_logs(folder: Path) -> None:
    """Remove the folder of this run's logs in a work dir."""
    logger = MMLogger.get_current_instance()
    for handler in list(logger.handlers):
        if not isinstance(handler, logging.FileHandler):
            continue
        logs = Path(handler.baseFilename).parent
        if folder.resolve() in logs.parents:  # else of an earlier run
            handler.close()
            logger.removeHandler(handler)
            shutil.rmtree(logs, ignore_errors=True)
