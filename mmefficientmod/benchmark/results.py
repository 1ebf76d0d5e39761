"""What was measured, and the file that keeps it so that a run can go on."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.benchmark import Measurement, TaskSpec

from mmefficientmod.atomic import atomic_write
from mmefficientmod.benchmark.cases import BenchmarkCase, Settings
from mmefficientmod.benchmark.model_specs import ModelSpec
from mmefficientmod.config.nodes import ConfigError

FILE = 'results.json'


@dataclass
class Row:
    """What was measured of one model in one case.

    Attributes:
        model: Name of the model.
        baseline: Name of the model that its ratios refer to: the baseline
            with the same weights, or else the first baseline; None if the
            model failed before that was found.
        times: Seconds of one run, for each round.
        peak: The most bytes that PyTorch has allocated at one time, weights,
            image and gradients included; None if PyTorch does not allocate
            (ONNX Runtime).
        saved: Bytes that autograd saves for the backward pass, without
            weights and image; None without training, and on CUDA.
        params: Number of parameters.
        flops: Multiply-adds for one image; None if they cannot be counted.
        difference: Largest absolute difference of an output from its
            reference, divided by the largest absolute value of the
            reference; None if there is no reference.
        compared_with: Name of the model whose eager outputs are the
            reference: the baseline if it has the same weights, or else this
            model itself.
        graph_breaks: Graph breaks of ``torch.compile``; None in other modes.
        breakdown: Seconds of each kind of block of an EfficientMod; see
            :func:`~mmefficientmod.benchmark.breakdown.time_blocks`.
        published: Published accuracies; see
            :func:`~mmefficientmod.benchmark.published.published_accuracies`.
        error: Why the model failed, in one line; None if it did not.
    """

    model: str
    baseline: str | None = None
    times: list[float] = field(default_factory=list)
    peak: int | None = None
    saved: int | None = None
    params: int | None = None
    flops: int | None = None
    difference: float | None = None
    compared_with: str | None = None
    graph_breaks: int | None = None
    breakdown: dict[str, float] | None = None
    published: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def median_ms(self) -> float | None:
        """Median time of a run, in milliseconds; None without times."""
        measurement = self._measurement
        return 1e3 * measurement.median if measurement else None

    @property
    def iqr_ms(self) -> float | None:
        """Interquartile range of the times, in milliseconds, or None."""
        measurement = self._measurement
        return 1e3 * measurement.iqr if measurement else None

    @property
    def _measurement(self) -> Measurement | None:
        if not self.times:
            return None
        return Measurement(1, self.times, TaskSpec('run()', 'pass'))

    def ratio_to(self, baseline: Row | None) -> float | None:
        """The median over the rounds of the ratio of the times.

        Within a round both models ran right after each other, so a change of
        the machine's speed between rounds cancels out.

        Returns:
            None if either has no times.
        """
        if baseline is None or not self.times or not baseline.times:
            return None
        return statistics.median(
            own / other
            for own, other in zip(self.times, baseline.times, strict=False)
        )


@dataclass
class Result:
    """A case, how it was measured, and the rows of all models.

    Attributes:
        case: What was run.
        device: Name of the device, such as ``cpu`` or ``cuda:1``.
        within: The whole model that the backbones were swapped into: a key
            of :data:`~mmefficientmod.benchmark.model_specs.HOSTS` or a
            config; None for backbones alone and configs.
        deploy: Whether the models were folded for inference.
        breakdown: Whether kinds of blocks were timed.
        fast_linear: Whether all models chose the library of their linear
            layers.
        baselines: Names of the models that the others are compared with.
        rounds: Number of rounds that were asked for.
        sources: For each model, the hash of its code.
        finished: Whether all rounds were run. Default: False.
        rows: One for each model. Default: empty.
    """

    case: BenchmarkCase
    device: str
    within: str | None
    deploy: bool
    breakdown: bool
    fast_linear: bool
    baselines: list[str]
    rounds: int
    sources: dict[str, str]
    finished: bool = False
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def planned(
        cls,
        specs: Sequence[ModelSpec],
        case: BenchmarkCase,
        settings: Settings,
        within: str | None,
    ) -> Result:
        """A result of models that are not measured yet."""
        return cls(
            case,
            str(settings.device),
            within,
            settings.deploy,
            settings.breakdown,
            settings.fast_linear,
            list(settings.baselines),
            settings.rounds,
            {spec.name: spec.source for spec in specs},
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Result:
        """The result that ``dataclasses.asdict`` gave the content of."""
        return cls(
            **content
            | dict(
                case=BenchmarkCase(**content['case']),
                rows=[Row(**row) for row in content['rows']],
            )
        )

    @property
    def title(self) -> str:
        """The case, the device and what was done to the models."""
        within = f', within {self.within}' if self.within else ''
        return f'{self.case}, {self.device}{within}{self.alterations}'

    @property
    def alterations(self) -> str:
        """What was done to the models before they were measured."""
        deploy = ', deployed' if self.deploy else ''
        fast = ', fast linear layers' if self.fast_linear else ''
        return deploy + fast

    @property
    def rounds_run(self) -> int:
        """Number of rounds that were run."""
        return max((len(row.times) for row in self.rows), default=0)

    def baseline_of(self, row: Row) -> Row | None:
        """The row that the ratios of another row refer to, if it is here."""
        return next((x for x in self.rows if x.model == row.baseline), None)

    def repeats(self, other: Result) -> bool:
        """Whether both measure the same code in the same way."""
        return self.replaces(other) and (self.sources, self.rounds) == (
            other.sources,
            other.rounds,
        )

    def replaces(self, other: Result) -> bool:
        """Whether both measure models of the same names in the same way.

        The code of the models and the number of rounds may differ.
        """
        return self._setup() == other._setup()

    def _setup(self) -> Result:
        names = dict.fromkeys(self.sources, '')
        return dataclasses.replace(
            self, sources=names, rounds=0, finished=False, rows=[]
        )


class Results:
    """The results of one run, and those that its folder had before.

    Args:
        folder: Where ``results.json`` is kept; None to keep no file.
        fresh: Whether to ignore the results that the folder has.
        machine: Machine and versions of this run.

    Attributes:
        results: In the order in which they were measured.

    Raises:
        ConfigError: If the folder has results of another machine or of other
            versions, or a file that cannot be read.
    """

    def __init__(
        self, folder: Path | None, fresh: bool, machine: dict[str, str]
    ) -> None:
        self.path = folder / FILE if folder else None
        self.machine = machine
        self.results: list[Result] = []
        if self.path and self.path.is_file() and not fresh:
            self.results = self._read(self.path)

    def _read(self, path: Path) -> list[Result]:
        try:
            content = json.loads(path.read_text())
            before = content['machine']
            results = [Result.from_dict(x) for x in content['results']]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f'{path} is no file of this benchmark ({error}); give '
                'another --out, or --fresh to overwrite it'
            ) from error
        changed = [
            f'{key} {before.get(key, "absent")}, now '
            f'{self.machine.get(key, "absent")}'
            for key in {**before, **self.machine}
            if before.get(key) != self.machine.get(key)
        ]
        if changed:
            raise ConfigError(
                f'{path} was measured with {"; ".join(changed)}: give '
                'another --out, or --fresh to measure again'
            )
        return results

    def find(self, planned: Result) -> Result | None:
        """The finished result that a planned one would repeat, if any.

        A result with a model that failed does not count: memory may suffice
        now, or a missing library be installed.
        """
        for result in self.results:
            failed = any(row.error for row in result.rows)
            if result.finished and not failed and result.repeats(planned):
                return result
        return None

    def add(self, result: Result) -> None:
        """Add a result, in place of older ones of the same models and case.

        An unfinished result does not replace a finished one. The file is
        written.
        """
        old = [x for x in self.results if x.replaces(result)]
        if not result.finished and any(x.finished for x in old):
            return
        self.results = [x for x in self.results if x not in old]
        self.results.append(result)
        if self.path:
            content = dict(
                machine=self.machine,
                results=[dataclasses.asdict(x) for x in self.results],
            )
            with atomic_write(self.path) as draft:
                draft.write_text(json.dumps(content, indent=1) + '\n')


def group_by_size(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Group results that differ only in the size of the image.

    Returns:
        For each title, with ``HxW`` for the size, the results from the
        smallest image to the largest. Groups with one size are left out.
    """
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=image_side):
        case = result.case
        size = f'x{case.height}x{case.width}'
        title = result.title.replace(size, 'xHxW')
        groups.setdefault(title, []).append(result)
    return {
        title: group
        for title, group in groups.items()
        if len({(x.case.height, x.case.width) for x in group}) > 1
    }


def image_side(result: Result) -> float:
    """Side of a square with as many pixels as the images of a result."""
    return math.sqrt(result.case.height * result.case.width)
