"""Running candidates side by side, round by round."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.utils.benchmark import Measurement, TaskSpec, Timer

from mmefficientmod.analysis.complexity import measure as measure_complexity
from mmefficientmod.analysis.memory import peak_bytes, saved_bytes
from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.inputs import give_proposals
from mmefficientmod.benchmark.model_specs import ModelSpec
from mmefficientmod.benchmark.official import efficientmod_of, weights_key
from mmefficientmod.benchmark.published import published
from mmefficientmod.benchmark.workloads import Workload, prepare
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.messages import REASON_LENGTH, shorten
from mmefficientmod.models.backbones.efficientmod import (
    AttentionBlock,
    ModulationBlock,
    PatchEmbed,
)
from mmefficientmod.models.layers.deploy import switch_to_deploy

# A quick model is run several times in a round, for about this long.
ROUND_SECONDS = 0.1
PARTS = {
    'stem and downsampling': PatchEmbed,
    'modulation blocks': ModulationBlock,
    'attention blocks': AttentionBlock,
}
TINY = torch.finfo(torch.float32).tiny


@dataclass
class Row:
    """What came out for one model in one case.

    Attributes:
        model: Its name.
        baseline: The model that its ratios refer to: that with the same
            weights, or else the first of the baselines; None where it failed
            too early to know.
        times: Seconds of one run, for each round.
        peak: The most that PyTorch has allocated at a time, in bytes: weights,
            input and gradients included. None where PyTorch does not know.
        saved: Bytes that autograd saves for the backward pass, without weights
            and input; None where there is none, and on CUDA.
        params: Parameters.
        flops: Multiply-adds of one image; None where they cannot be counted.
        difference: Largest absolute difference of an output from what it
            should be, relative to the largest value there; None where nothing
            says what it should be.
        compared_with: The model whose eager outputs say it: the baseline, if
            it has the same weights, or this one.
        graph_breaks: Of ``torch.compile``; None in other modes.
        breakdown: Seconds of each kind of part of an EfficientMod.
        published: What is published of it; see
            :func:`~mmefficientmod.benchmark.published.published`.
        error: Why there is nothing more, in one line.
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
    def measurement(self) -> Measurement | None:
        """Median and spread; None without times."""
        if not self.times:
            return None
        return Measurement(1, self.times, TaskSpec('run()', 'pass'))

    def ratio_to(self, baseline: Row | None) -> float | None:
        """The median over the rounds of the ratio of the times.

        Within a round both ran right after each other, so that a machine
        whose speed drifts hits both alike.
        """
        if baseline is None or not self.times or not baseline.times:
            return None
        return statistics.median(
            own / other
            for own, other in zip(self.times, baseline.times, strict=False)
        )


@dataclass(frozen=True)
class Settings:
    """How cases are measured.

    Attributes:
        device: Where.
        rounds: How often each model's turn comes.
        baselines: Names of the models that others are compared with.
        deploy: Whether models are folded for inference first.
        breakdown: Whether the parts of EfficientMod are timed, too.
    """

    device: torch.device
    rounds: int
    baselines: Sequence[str]
    deploy: bool = False
    breakdown: bool = False


@dataclass
class _Runner:
    """A model in its turn: what is run, and what is known about it."""

    row: Row
    timer: Timer
    outputs: list[Tensor]
    own_outputs: list[Tensor]  # of the model before anything was done to it
    weights: str | None
    altered: bool


def measure_case(
    candidates: Sequence[ModelSpec],
    case: BenchmarkCase,
    settings: Settings,
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[list[Row], bool]:
    """Measure all candidates in one case.

    Args:
        candidates: The models.
        case: What is run of them.
        settings: How.
        progress: Called with the name of the model before each step; there
            is one for building it and one a round.

    Returns:
        A row for each candidate, and whether all rounds were run: Ctrl-C
        ends them early.
    """
    torch.set_num_threads(case.threads)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(
        case.batch, 3, case.height, case.width, generator=generator
    ).to(settings.device)
    _take_workspace(settings.device)
    rows = {c.name: Row(c.name) for c in candidates}
    runners: dict[str, _Runner] = {}
    with _compiling(case, len(candidates)):
        for candidate in candidates:
            row = rows[candidate.name]
            row.published = published(candidate.published_name)
            progress(candidate.name)
            with _record_error(row):
                runners[candidate.name] = _start(
                    candidate, case, settings, image, row
                )
        for runner in runners.values():
            with _record_error(runner.row):
                _compare(runner, runners, settings.baselines)
        finished = _interleave(runners, settings.rounds, progress)
    del runners
    _free(settings.device)
    return list(rows.values()), finished


@contextlib.contextmanager
def _record_error(row: Row) -> Iterator[None]:
    """A failure within ends in the row, and the run goes on."""
    try:
        yield
    except Exception as error:
        row.error = reason(error)


@contextlib.contextmanager
def _compiling(case: BenchmarkCase, number: int) -> Iterator[None]:
    """Have ``torch.compile`` start anew, for this number of models.

    It keeps what it compiled, and gives up where there are more than a few
    models of one class.
    """
    if case.compiled:
        torch._dynamo.reset()
        with torch._dynamo.config.patch(cache_size_limit=8 * number):
            yield
    else:
        yield


def reason(error: BaseException) -> str:
    """One line of an error: the first that says something."""
    kind = (
        '' if isinstance(error, ConfigError) else f'{type(error).__name__}: '
    )
    return kind + shorten(str(error), REASON_LENGTH - len(kind))


def _start(
    candidate: ModelSpec,
    case: BenchmarkCase,
    settings: Settings,
    image: Tensor,
    row: Row,
) -> _Runner:
    """Build a model, warm it up, and find all but its time."""
    device = settings.device
    _free(device)  # what is left of the one before
    allocated = _allocated(device)
    model = candidate.build().to(device)
    give_proposals(model, case)
    altered = case != case.eager
    # Whole models are not compared: what heads do with rounding, such as
    # choosing proposals, may be anything.
    alone = not candidate.whole
    own = _outputs(prepare(model, case.eager, image)) if alone else []
    # Folded, it has other tensors.
    weights = weights_key(getattr(model, 'backbone', model))
    if settings.deploy:
        altered |= bool(switch_to_deploy(model))
    _count(model, case, row)
    if settings.breakdown and case.mode == 'infer':
        row.breakdown = _break_down(model, case, image, settings.rounds)
    work = prepare(model, case, image)
    if case.compiled:
        counters = torch._dynamo.utils.counters
        counters.clear()
        work.run()
        row.graph_breaks = sum(counters['graph_break'].values())
    work.run()  # warm-up
    _measure_memory(model, case, work, image, allocated, row)
    outputs = _outputs(work) if alone else []
    timer = Timer(
        'run()', globals=dict(run=work.run), num_threads=case.threads
    )
    return _Runner(row, timer, outputs, own, weights, altered)


def _interleave(
    runners: dict[str, _Runner],
    rounds: int,
    progress: Callable[[str], None],
) -> bool:
    """Time the models in turn; every other round backwards.

    So that neither is always the first after a pause, nor the last of a
    round in which the machine slows down.

    Returns:
        Whether it came to the end, without Ctrl-C.
    """
    try:
        for i in range(rounds):
            names = list(runners)
            for name in names if i % 2 == 0 else reversed(names):
                progress(name)
                row = runners[name].row
                with _record_error(row):
                    measurement = runners[name].timer.blocked_autorange(
                        min_run_time=ROUND_SECONDS
                    )
                    row.times.append(measurement.median)
                if row.error:
                    row.times.clear()
                    del runners[name]
    except KeyboardInterrupt:
        # Only rounds that all have run can be compared.
        rows = [runner.row for runner in runners.values()]
        least = min((len(row.times) for row in rows), default=0)
        for row in rows:
            del row.times[least:]
        return False
    return True


def _compare(
    runner: _Runner, runners: Mapping[str, _Runner], baselines: Sequence[str]
) -> None:
    """Find the baseline of a model, and what its outputs should be."""
    row = runner.row
    weights = runner.weights
    same = [
        name
        for name in baselines
        if weights and name in runners and runners[name].weights == weights
    ]
    row.baseline = same[0] if same else baselines[0]
    if same:
        expected = runners[row.baseline]
    elif runner.altered:
        expected = runner
    else:
        return
    differences = [
        (a - b).abs().max() / b.abs().max().clamp_min(TINY)
        for a, b in zip(runner.outputs, expected.own_outputs, strict=True)
    ]
    if differences:
        row.difference = torch.stack(differences).max().item()
        row.compared_with = expected.row.model


def _outputs(work: Workload) -> list[Tensor]:
    # Without TF32, so that differences are those of the models.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return work.outputs()


def _count(model: nn.Module, case: BenchmarkCase, row: Row) -> None:
    row.params = sum(p.numel() for p in model.parameters())
    try:
        row.flops = measure_complexity(model, (case.height, case.width)).flops
    except Exception:
        # Not every model can be traced; it is measured all the same.
        row.flops = None


# ------------------------------------------------------------------- memory


def _measure_memory(
    model: nn.Module,
    case: BenchmarkCase,
    work: Workload,
    image: Tensor,
    allocated: int,
    row: Row,
) -> None:
    """Find the memory that a row speaks of."""
    if case.mode == 'onnxruntime':
        return  # it has an allocator of its own
    model.zero_grad(set_to_none=True)  # left by the warm-up
    device = image.device
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        work.run()
        torch.cuda.synchronize(device)
        row.peak = torch.cuda.max_memory_allocated(device) - allocated
        return
    known = [*model.parameters(), *model.buffers(), image]
    row.peak = peak_bytes(work.run) + sum(x.nbytes for x in known)
    if work.forward is not None:
        row.saved = saved_bytes(work.forward, known)


def _allocated(device: torch.device) -> int:
    if device.type != 'cuda':
        return 0
    return torch.cuda.memory_allocated(device)


def _take_workspace(device: torch.device) -> None:
    """Have cuBLAS allocate what it keeps, so that no model pays for it."""
    if device.type == 'cuda':
        x = torch.ones(8, 8, device=device, requires_grad=True)
        (x @ x).sum().backward()


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- breakdown


def _break_down(
    model: nn.Module, case: BenchmarkCase, image: Tensor, rounds: int
) -> dict[str, float] | None:
    """Seconds that each kind of part of an EfficientMod takes.

    The clock is read around each part, for which a GPU has to wait: their sum
    is more than the model takes in one go.

    Returns:
        Medians over the rounds; None for a model without such parts.
    """
    backbone = efficientmod_of(getattr(model, 'backbone', model))
    if backbone is None:
        return None
    spent = dict.fromkeys(PARTS, 0.0)
    started: list[float] = []

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        return time.perf_counter()

    def before(module: nn.Module, args: Any) -> None:
        started.append(now())

    def after(part: str, module: nn.Module, args: Any, out: Any) -> None:
        spent[part] += now() - started.pop()

    handles = []
    for module in backbone.modules():
        for part, kind in PARTS.items():
            if isinstance(module, kind):
                handles.append(module.register_forward_pre_hook(before))
                hook = partial(after, part)
                handles.append(module.register_forward_hook(hook))
    if not handles:
        return None
    work = prepare(model, case, image)
    seen: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        spent.update(dict.fromkeys(spent, 0.0))
        work.run()
        seen.append(dict(spent))
    for handle in handles:
        handle.remove()
    # The first was the warm-up.
    return {
        part: statistics.median(x[part] for x in seen[1:]) for part in spent
    }
