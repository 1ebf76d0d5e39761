"""Training one model after the other in the same way: ``tools/compare.py``.

Each run is ``tools/train.py`` in a process and a folder of its own. What it
logged is kept there, with how it was made, so that it need not be made again.
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
# Shares of the training after which mIoU is measured.
VALIDATIONS = 5
# The first iterations take longer: memory is taken, kernels are chosen.
WARM_UP = 5
FILE = 'run.json'
LOG = 'output.txt'
ITERATION = re.compile(r'Iter\(train\) *\[ *(\d+)/(\d+)\]')
ERROR = re.compile(
    r'error: .+|(\w+\.)*[A-Z]\w*(Error|Exception|Interrupt): .+'
)


@dataclass(frozen=True)
class Recipe:
    """What all runs have in common.

    Attributes:
        on: ``mini`` for the generated miniature, or the folder of a data set
            in ADE20K's layout.
        iters: Length of the training.
        crop: Side of the crops, in pixels; images are scaled so that their
            shorter side is as long. Default: None, as the recipe or the
            miniature has it.
        threads: Of the CPU, for one operator.
    """

    on: str
    iters: int
    crop: int | None
    threads: int

    def __post_init__(self) -> None:
        for part in ('images/training', 'images/validation'):
            if self.on != MINI and not Path(self.on, part).is_dir():
                raise ConfigError(
                    f'--on {self.on} is neither {MINI} nor a data set in '
                    f"ADE20K's layout: there is no {Path(self.on, part)}"
                )

    def arguments(self, backbone: str, seed: int) -> list[str]:
        """Those of ``tools/train.py``, but for the work dir."""
        options: dict[str, Any] = {
            'randomness.seed': seed,
            'train_cfg.max_iters': self.iters,
            'train_cfg.val_interval': max(1, self.iters // VALIDATIONS),
            'default_hooks.logger.interval': 1,
            # The weights are of no use to anyone.
            'default_hooks.checkpoint.interval': -1,
            'default_hooks.checkpoint.save_last': False,
        }
        if self.on != MINI:
            options['data_root'] = self.on
            for loader in ('train_dataloader', 'val_dataloader'):
                # Workers would take cores from some more than from others.
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
        seed: Of weights, order of the data and augmentation.
        made: How it was made: arguments, code, threads, machine.
        params: Parameters of the whole segmentor.
        memory: Bytes. On CUDA the allocator's peak; on a CPU what autograd
            saves in a step for the backward pass, without the weights.
        times: Seconds of each iteration.
        losses: After each iteration.
        miou: Per cent over the classes present, by the iterations before.
        error: Why there is nothing more, in one line.
        finished: Whether it came to its end.
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
        """Of an iteration: the median after the warm-up."""
        skipped = min(WARM_UP, len(self.times) // 2)
        return statistics.median(self.times[skipped:])

    @property
    def final_miou(self) -> float:
        """At the end of the training."""
        return self.miou[max(self.miou)]

    @classmethod
    def load(cls, folder: Path) -> Run | None:
        """That of a folder; None where there is none.

        Raises:
            ConfigError: If the folder is somebody else's.
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
        """Write it, so that Ctrl-C leaves it whole."""
        with atomic_write(folder / FILE) as draft:
            draft.write_text(json.dumps(dataclasses.asdict(self)) + '\n')

    def read(self, folder: Path) -> None:
        """Take in what MMEngine logged.

        Raises:
            ValueError: If it logged less than a whole training.
        """
        lines = []
        for path in folder.glob('*/vis_data/scalars.json'):
            lines += map(json.loads, path.read_text().splitlines())
        for line in lines:
            self.params = line.get('params', self.params)
            if 'saved_bytes' in line:
                self.memory = line['saved_bytes']
            if 'memory' in line:  # in MiB, since the line before
                self.memory = max(self.memory or 0, line['memory'] * 2**20)
            if 'loss' in line:
                self.times.append(line['time'])
                self.losses.append(line['loss'])
            if 'mIoU_present' in line:
                self.miou[line['step']] = line['mIoU_present']
        if not self.params or not self.times or not self.miou:
            raise ValueError(f'{folder} has no log of a whole training')


def plan(
    candidates: Sequence[ModelSpec],
    seeds: Sequence[int],
    recipe: Recipe,
    machine: dict[str, str],
) -> list[Run]:
    """The runs, all models of a seed before the next seed."""
    return [
        Run(
            candidate.name,
            seed,
            dict(
                arguments=recipe.arguments(candidate.name, seed),
                source=candidate.source,
                threads=recipe.threads,
                machine=machine,
            ),
        )
        for seed in seeds
        for candidate in candidates
    ]


def folder_of(run: Run, out: Path) -> Path:
    """Where a run is kept."""
    name = re.sub(r'[^\w.-]+', '_', run.model)[:100]
    return out / name / f'seed{run.seed}'


def find(run: Run, out: Path) -> Run | None:
    """The finished run that was made as a planned one is to be."""
    kept = Run.load(folder_of(run, out))
    if kept is not None and kept.finished and kept.made == run.made:
        return kept
    return None


def train(
    run: Run, out: Path, script: Path, progress: Callable[[float], None]
) -> None:
    """Make a run, in the place of what its folder has.

    A failure ends in :attr:`Run.error`, whatever happened to the process.

    Args:
        run: What to make; filled in.
        out: Folder of all runs.
        script: ``tools/train.py``.
        progress: Called with the share that is done, 0 to 1.
    """
    folder = folder_of(run, out)
    if Run.load(folder) is not None:  # ours
        shutil.rmtree(folder)
    run.save(folder)
    arguments = [*run.made['arguments'], '--work-dir', str(folder)]
    code = _call(
        [sys.executable, '-u', str(script), *arguments],
        run.made['threads'],
        folder / LOG,
        progress,
    )
    if code:
        run.error = reason(code, (folder / LOG).read_text())
    else:
        try:
            run.read(folder)
            run.finished = True
        except ValueError as error:
            run.error = str(error)
    run.save(folder)


def _call(
    command: list[str],
    threads: int,
    log: Path,
    progress: Callable[[float], None],
) -> int:
    """Run a training, with its output in a file; its exit status."""
    numbers = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')
    with (
        log.open('w') as file,
        subprocess.Popen(
            command,
            env=os.environ | dict.fromkeys(numbers, str(threads)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        ) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                if done := ITERATION.search(line):
                    progress(int(done[1]) / int(done[2]))
            return process.wait()
        except BaseException:  # Ctrl-C: it shall not go on alone
            process.kill()
            process.wait()
            raise


def reason(code: int, output: str) -> str:
    """Why a process failed, in one line, from its exit status and output."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ', which may be for lack of memory'
        return f'ended by {name}{hint * (name == "SIGKILL")}'
    lines = [x.strip() for x in output.splitlines() if x.strip()]
    errors = [x for x in lines if ERROR.fullmatch(x)]
    text = [f'exit status {code}', *lines[-1:], *errors[-1:]][-1]
    return shorten(text.removeprefix('error: '))
