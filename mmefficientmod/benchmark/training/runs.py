"""Trainings of several models by the same recipe: ``tools/compare.py``.

Each run is ``tools/train.py`` in a process and a folder of its own. The folder
keeps its figures and its settings, so that the run need not be repeated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmefficientmod.atomic import atomic_write
from mmefficientmod.benchmark.model_specs import ModelSpec
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.messages import shorten

CONFIG = 'mmefficientmod::_base_/semantic_fpn_compare.py'
MINI = 'mini'
VALIDATIONS = 5  # of each training
# The first iterations take longer: memory is allocated, kernels are chosen.
WARM_UP = 5
FILE = 'run.json'
LOG = 'output.txt'
# What MMEngine logs of an iteration, and the last line of an error.
ITERATION = re.compile(r'Iter\(train\) *\[ *(\d+)/(\d+)\]')
ERROR = re.compile(
    r'error: .+|(\w+\.)*[A-Z]\w*(Error|Exception|Interrupt): .+'
)


@dataclass(frozen=True)
class Recipe:
    """The settings that all runs of a comparison share.

    Attributes:
        on: ``mini`` for the generated miniature of ADE20K, or the folder of a
            data set in ADE20K's layout.
        iters: Length of each training, in iterations.
        crop: Side of the square crops, in pixels; images are scaled so that
            their shorter side is equally long. None for that of the config
            or of the miniature.
        threads: CPU threads that one operator may use.

    Raises:
        ConfigError: If ``on`` is neither ``mini`` nor such a folder.
    """

    on: str
    iters: int
    crop: int | None
    threads: int

    def __post_init__(self) -> None:
        for folder in ('images/training', 'images/validation'):
            if self.on != MINI and not Path(self.on, folder).is_dir():
                raise ConfigError(
                    f'--on {self.on} is neither {MINI} nor a data set in '
                    f"ADE20K's layout: there is no {Path(self.on, folder)}"
                )

    def arguments(self, backbone: str, seed: int) -> list[str]:
        """The arguments of ``tools/train.py``, without the work dir.

        Args:
            backbone: Name or dict of the backbone.
            seed: Seed of weights, order of the data and augmentation.
        """
        options: dict[str, Any] = {
            'randomness.seed': seed,
            'train_cfg.max_iters': self.iters,
            'train_cfg.val_interval': max(1, self.iters // VALIDATIONS),
            'default_hooks.logger.interval': 1,
            # Nobody needs the weights, and they would fill the disk.
            'default_hooks.checkpoint.interval': -1,
            'default_hooks.checkpoint.save_last': False,
        }
        if self.on != MINI:
            options['data_root'] = self.on
            for loader in ('train_dataloader', 'val_dataloader'):
                # Workers would compete with the training for the cores.
                options[f'{loader}.num_workers'] = 0
                options[f'{loader}.persistent_workers'] = False
        if self.crop:
            options['crop_size'] = f'{self.crop},{self.crop}'
            options['scale'] = f'{4 * self.crop},{self.crop}'
        return [
            CONFIG,
            '--backbone',
            backbone,
            *(['--mini'] if self.on == MINI else []),
            '--cfg-options',
            *(f'{key}={value}' for key, value in options.items()),
        ]


@dataclass
class Run:
    """One training.

    Attributes:
        model: Name of the backbone.
        seed: Seed of weights, order of the data and augmentation.
        made: Its settings: arguments of ``tools/train.py``, hash of the
            code, threads and machine.
        params: Number of parameters of the whole segmentor.
        memory: Bytes. On CUDA the allocator's peak; on a CPU what autograd
            saves in a step for the backward pass, without the weights.
        times: Seconds of each iteration.
        losses: Loss of each iteration.
        miou: For each validation, the number of iterations before it and the
            mean IoU over the classes present in the data, in per cent.
        error: Why it failed, in one line; None if it did not.
        finished: Whether the training came to its end.
    """

    model: str
    seed: int
    made: dict[str, Any]
    params: int | None = None
    memory: float | None = None
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    miou: dict[int, float] = field(default_factory=dict)
    error: str | None = None
    finished: bool = False

    @property
    def seconds(self) -> float:
        """Median time of an iteration after the warm-up, in seconds."""
        skipped = min(WARM_UP, len(self.times) // 2)
        return statistics.median(self.times[skipped:])

    @property
    def final_miou(self) -> float:
        """mIoU of the last validation, in per cent."""
        return self.miou[max(self.miou)]

    @classmethod
    def load(cls, folder: Path) -> Run | None:
        """Read the run of a folder.

        Returns:
            None if the folder does not exist.

        Raises:
            ConfigError: If the folder holds anything else than a run.
        """
        path = folder / FILE
        if not folder.exists():
            return None
        try:
            run = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f'{folder} is no run of this tool ({error}); move it away, '
                'or give another --out'
            ) from error
        run.miou = {int(key): value for key, value in run.miou.items()}
        return run

    def save(self, folder: Path) -> None:
        """Write the run to its folder, whole or not at all."""
        with atomic_write(folder / FILE) as draft:
            draft.write_text(json.dumps(dataclasses.asdict(self)) + '\n')

    def read(self, folder: Path) -> None:
        """Set the figures from what MMEngine logged.

        Args:
            folder: The work dir of the training.

        Raises:
            ValueError: If the log is not that of a whole training.
        """
        lines: list[dict[str, Any]] = []
        for path in folder.glob('*/vis_data/scalars.json'):
            lines += map(json.loads, path.read_text().splitlines())
        for line in lines:
            self.params = line.get('params', self.params)
            if 'saved_bytes' in line:
                self.memory = line['saved_bytes']
            if 'memory' in line:  # peak since the line before, in MiB
                self.memory = max(self.memory or 0, line['memory'] * 2**20)
            if 'loss' in line:
                self.times.append(line['time'])
                self.losses.append(line['loss'])
            if 'mIoU_present' in line:
                self.miou[line['step']] = line['mIoU_present']
        if not self.params or not self.times or not self.miou:
            raise ValueError(f'{folder} has no log of a whole training')


def plan(
    specs: Sequence[ModelSpec],
    seeds: Sequence[int],
    recipe: Recipe,
    machine: dict[str, str],
) -> list[Run]:
    """The runs to make: all models with one seed, then with the next."""
    return [
        Run(
            spec.name,
            seed,
            dict(
                arguments=recipe.arguments(spec.name, seed),
                source=spec.source,
                threads=recipe.threads,
                machine=machine,
            ),
        )
        for seed in seeds
        for spec in specs
    ]


def folder_of(run: Run, out: Path) -> Path:
    """The folder of a run, below that of all runs."""
    name = re.sub(r'[^\w.-]+', '_', run.model)[:100]
    return out / name / f'seed{run.seed}'


def find(run: Run, out: Path) -> Run | None:
    """The finished run with the settings of a planned one, if there is one.

    Args:
        run: The planned run.
        out: Folder of all runs.

    Raises:
        ConfigError: If its folder holds anything else than a run.
    """
    kept = Run.load(folder_of(run, out))
    if kept is not None and kept.finished and kept.made == run.made:
        return kept
    return None


def train(
    run: Run, out: Path, script: Path, progress: Callable[[float], None]
) -> None:
    """Train a model, and replace the run that its folder has.

    If the process fails, :attr:`Run.error` says why.

    Args:
        run: The planned run; gets the figures.
        out: Folder of all runs.
        script: ``tools/train.py``.
        progress: Called with the share that is done, 0 to 1.

    Raises:
        ConfigError: If the run's folder holds anything else than a run.
    """
    folder = folder_of(run, out)
    if Run.load(folder) is not None:  # so nothing else is removed
        shutil.rmtree(folder)
    run.save(folder)
    arguments = [*run.made['arguments'], '--work-dir', str(folder)]
    status = _run_process(
        [sys.executable, '-u', str(script), *arguments],
        run.made['threads'],
        folder / LOG,
        progress,
    )
    if status:
        run.error = failure_of(status, (folder / LOG).read_text())
    else:
        try:
            run.read(folder)
            run.finished = True
        except ValueError as error:
            run.error = str(error)
    run.save(folder)


def _run_process(
    command: list[str],
    threads: int,
    log: Path,
    progress: Callable[[float], None],
) -> int:
    """Run a training, and write its output to a file.

    Returns:
        The exit status; negative for a signal.
    """
    variables = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')
    with (
        log.open('w') as file,
        subprocess.Popen(
            command,
            env=os.environ | dict.fromkeys(variables, str(threads)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                file.write(line)
                if done := ITERATION.search(line):
                    progress(int(done[1]) / int(done[2]))
            return process.wait()
        except BaseException:  # Ctrl-C, too: do not leave it running
            process.kill()
            process.wait()
            raise


def failure_of(status: int, output: str) -> str:
    """Say in one line why a process failed.

    Args:
        status: Its exit status; negative for a signal.
        output: All that it printed. The last error counts, or else the last
            line.
    """
    if status < 0:
        name = signal.Signals(-status).name
        hint = ', perhaps for lack of memory'
        return f'ended by {name}{hint * (name == "SIGKILL")}'
    lines = [x.strip() for x in output.splitlines() if x.strip()]
    errors = [x for x in lines if ERROR.fullmatch(x)]
    text = [f'exit status {status}', *lines[-1:], *errors[-1:]][-1]
    return shorten(text.removeprefix('error: '))
