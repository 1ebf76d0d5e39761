"""torchrun, without its traceback where a process has said what is wrong.

``python -m mmefficientmod.engine.launch`` takes the arguments of ``torchrun``.
It exits with the code of the process that failed first, and passes on SIGUSR1,
with which batch systems announce the end of a job.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main(argv: Sequence[str] | None = None) -> None:
    """Run a script in several processes.

    Args:
        argv: Arguments of ``torchrun``. Default: those of the command line.
    """
    # Its records of the end of each process.
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    logging.getLogger('torch.distributed.run').setLevel(logging.ERROR)
    if hasattr(signal, 'SIGUSR1'):  # not on Windows
        signal.signal(signal.SIGUSR1, _stop)
    args = parse_args(argv)
    args.monitor_interval = 0.1  # seconds; 5 in PyTorch 2.1
    try:
        run(args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code < 0:
            sys.stderr.write(
                f'error: process {rank} was ended by signal {-code}\n'
            )
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def _stop(number: int, frame: object) -> None:
    """Let the agent send the signal to the processes, and wait for them."""
    raise SignalException('stopped', signal.Signals(number))


if __name__ == '__main__':
    main(sys.argv[1:])
