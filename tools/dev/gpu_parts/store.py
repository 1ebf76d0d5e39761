"""The results of all parts: ``results.json`` and ``gpu.md``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmefficientmod.atomic import atomic_write
from mmefficientmod.benchmark.tables import describe, markdown_table
from mmefficientmod.config.nodes import ConfigError

from .job import Row

# States of a part.
WAITING, RUNNING, FINISHED = 'not started', 'running', 'finished'
STOPPED = 'stopped at its time limit'


@dataclass
class JobResult:
    """What a job gave.

    Attributes:
        name: Name of the job.
        seconds: How long it took.
        rows: Its rows.
        error: Why it ended early, in one line; None if it did not.
    """

    name: str
    seconds: float
    rows: list[Row] = field(default_factory=list)
    error: str | None = None

    @property
    def failures(self) -> list[str]:
        """What failed, one line each."""
        lines = [f'{self.name}: {self.error}'] if self.error else []
        return lines + [row.failed for row in self.rows if row.failed]


@dataclass
class PartResult:
    """What a part gave so far.

    Attributes:
        state: One of :data:`WAITING`, :data:`RUNNING`, :data:`STOPPED` and
            :data:`FINISHED`.
        seconds: How long it ran in this call of the command.
        current: Name of the job that runs; None between two jobs.
        left: Number of jobs that have not run.
        jobs: The jobs that ran, by their names.
    """

    state: str = WAITING
    seconds: float = 0.0
    current: str | None = None
    left: int = 0
    jobs: dict[str, JobResult] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """What failed, one line each."""
        return [x for job in self.jobs.values() for x in job.failures]

    @property
    def summary(self) -> str:
        """State and numbers, in one line."""
        rows = sum(len(job.rows) for job in self.jobs.values())
        left = f', {self.left} jobs left' if self.left else ''
        return (
            f'{self.state} after {self.seconds:.0f} s, {rows} rows, '
            f'{len(self.failures)} failed{left}'
        )


class Store:
    """The results in a folder.

    Args:
        folder: Where the files are; made if it does not exist.

    Attributes:
        machine: What the results were measured on; empty before the first.
        parts: The results by the names of the parts.

    Raises:
        ConfigError: If the folder has a file that is not of this command.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / 'results.json'
        self.machine: dict[str, str] = {}
        self.parts: dict[str, PartResult] = {}
        if not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text())
            self.machine = content['machine']
            self.parts = {
                name: _read_part(part)
                for name, part in content['parts'].items()
            }
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f'{self.path} is no file of this command ({error}); give '
                'another --out, or --fresh to overwrite it'
            ) from error

    def set_machine(self, machine: dict[str, str]) -> None:
        """Note what is measured on.

        Raises:
            ConfigError: If there are results of another machine.
        """
        if self.parts and self.machine and self.machine != machine:
            raise ConfigError(
                f'{self.path} was measured on {describe(self.machine)}; now '
                f'it is {describe(machine)}: give another --out, or --fresh '
                'to measure again'
            )
        self.machine = machine

    def plan(self, name: str) -> None:
        """Have a part run, unless all of its jobs ran and nothing failed.

        Jobs that failed run again.
        """
        part = self.parts.setdefault(name, PartResult())
        kept = {k: job for k, job in part.jobs.items() if not job.failures}
        if part.state != FINISHED or len(kept) < len(part.jobs):
            self.parts[name] = PartResult(jobs=kept)

    def save(self) -> None:
        """Write both files, each whole or not at all."""
        content = dict(
            machine=self.machine,
            parts={k: dataclasses.asdict(x) for k, x in self.parts.items()},
        )
        with atomic_write(self.path) as draft:
            draft.write_text(json.dumps(content, indent=1) + '\n')
        with atomic_write(self.folder / 'gpu.md') as draft:
            draft.write_text(self.markdown())

    def markdown(self) -> str:
        """All tables, and what failed, as Markdown."""
        blocks = [describe(self.machine)]
        for name, part in self.parts.items():
            blocks.append(f'## {name}\n\n{part.summary}')
            tables: dict[str, list[Row]] = {}
            for job in part.jobs.values():
                for row in job.rows:
                    tables.setdefault(row.table, []).append(row)
            for title, rows in tables.items():
                blocks.append(f'**{title}**\n\n{_table(rows)}')
            if part.failures:
                blocks.append('Failed:')
                blocks.append('\n'.join(f'- {x}' for x in part.failures))
        return '\n\n'.join(blocks) + '\n'


def _read_part(content: dict[str, Any]) -> PartResult:
    jobs = {
        name: JobResult(**job | dict(rows=[Row(**row) for row in job['rows']]))
        for name, job in content['jobs'].items()
    }
    return PartResult(**content | dict(jobs=jobs))


def _table(rows: list[Row]) -> str:
    """A Markdown table; without the columns that have no value."""
    titles = list(
        dict.fromkeys(
            title
            for row in rows
            for title, value in row.values.items()
            if value is not None
        )
    )
    failed = any(row.failed for row in rows)
    cells = [titles + ['check'] * failed]
    for row in rows:
        line = [_text(row.values.get(title)) for title in titles]
        cells.append(line + ['failed' if row.failed else ''] * failed)
    return markdown_table(cells)


def _text(value: Any) -> str:
    if value is None:
        return ''
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1000:
        return f'{value:.0f}'
    # Three digits; errors and other small values with an exponent.
    return f'{value:.2g}' if abs(value) < 0.01 else f'{value:.3g}'
