"""What was measured, on what, kept in a folder so that a run can go on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmefficientmod.atomic import atomic_write
from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.measure import Row, Settings
from mmefficientmod.benchmark.model_specs import ModelSpec
from mmefficientmod.config.nodes import ConfigError

FILE = 'results.json'


@dataclass
class Result:
    """A case, how it was measured, and what came out.

    Attributes:
        case: What was run.
        device: Where: ``cpu`` or ``cuda``.
        within: What the backbones were in; None for backbones alone.
        deploy: Whether they were folded for inference.
        breakdown: Whether parts were timed.
        baselines: Names of the models that others are compared with.
        rounds: How many were asked for.
        sources: For each model, the hash of its code.
        finished: Whether all rounds were run.
        rows: One for each model.
    """

    case: BenchmarkCase
    device: str
    within: str | None
    deploy: bool
    breakdown: bool
    baselines: list[str]
    rounds: int
    sources: dict[str, str]
    finished: bool = False
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def planned(
        cls,
        candidates: Sequence[ModelSpec],
        case: BenchmarkCase,
        settings: Settings,
        within: str | None,
    ) -> Result:
        """One in which nothing was measured yet."""
        return cls(
            case,
            str(settings.device),
            within,
            settings.deploy,
            settings.breakdown,
            list(settings.baselines),
            settings.rounds,
            {c.name: c.source for c in candidates},
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Result:
        """The opposite of ``dataclasses.asdict``."""
        return cls(
            **content
            | dict(
                case=BenchmarkCase(**content['case']),
                rows=[Row(**row) for row in content['rows']],
            )
        )

    @property
    def title(self) -> str:
        """What a table of it is called."""
        place = f', within {self.within}' if self.within else ''
        deploy = ', deployed' if self.deploy else ''
        return f'{self.case}, {self.device}{place}{deploy}'

    def baseline_of(self, row: Row) -> Row | None:
        """The row that ratios of another refer to, if there is one."""
        return next((x for x in self.rows if x.model == row.baseline), None)

    def repeats(self, other: Result) -> bool:
        """Whether both are of the same code, measured in the same way."""
        return self.replaces(other) and (self.sources, self.rounds) == (
            other.sources,
            other.rounds,
        )

    def replaces(self, other: Result) -> bool:
        """Whether both are of models of the same names, and alike otherwise.

        Their code may be another, as may be how often they were run.
        """
        return self._plan() == other._plan()

    def _plan(self) -> Result:
        names = dict.fromkeys(self.sources, '')
        return dataclasses.replace(
            self, sources=names, rounds=0, finished=False, rows=[]
        )


class Results:
    """The results of a folder, or of one run.

    Args:
        folder: Where they are kept; None keeps them nowhere.
        fresh: Whether to forget what the folder has.
        machine: What this run measures on.

    Attributes:
        results: In the order in which they were measured.

    Raises:
        ConfigError: If the folder has results of another machine or other
            versions.
    """

    def __init__(
        self, folder: Path | None, fresh: bool, machine: dict[str, str]
    ) -> None:
        self.path = folder / FILE if folder else None
        self.machine = machine
        self.results: list[Result] = []
        if self.path and self.path.is_file() and not fresh:
            self._load()

    def _load(self) -> None:
        try:
            content = json.loads(self.path.read_text())
            before = content['machine']
            results = [Result.from_dict(x) for x in content['results']]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f'{self.path} is no file of this benchmark ({error}); give '
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
                f'{self.path} was measured with {"; ".join(changed)}: give '
                'another --out, or --fresh to measure anew'
            )
        self.results = results

    def find(self, planned: Result) -> Result | None:
        """The finished result that a planned one would repeat.

        One with a model that failed is measured again: there may be memory
        now, or what was missing.
        """
        for result in self.results:
            failed = any(row.error for row in result.rows)
            if result.finished and not failed and result.repeats(planned):
                return result
        return None

    def add(self, result: Result) -> None:
        """Take a result in, in the place of an older one of the same.

        The same is what has the same models and settings, whatever their code
        was and the rounds were. A finished one gives way to a finished one.
        """
        same = [x for x in self.results if x.replaces(result)]
        if not result.finished and any(x.finished for x in same):
            return
        self.results = [x for x in self.results if x not in same]
        self.results.append(result)
        if self.path:
            content = dict(
                machine=self.machine,
                results=[dataclasses.asdict(x) for x in self.results],
            )
            with atomic_write(self.path) as draft:
                draft.write_text(json.dumps(content, indent=1) + '\n')


def group_by_size(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results that differ in the size of the image alone, small to large."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=side_of_square):
        case = result.case
        size = f'x{case.height}x{case.width}'
        title = result.title.replace(size, 'xHxW')
        groups.setdefault(title, []).append(result)
    return {title: x for title, x in groups.items() if len(x) > 1}


def side_of_square(result: Result) -> float:
    """Of the square with as many pixels."""
    return math.sqrt(result.case.height * result.case.width)
