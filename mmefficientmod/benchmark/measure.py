"""Measuring models side by side, round by round."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from mmefficientmod.analysis.complexity import measure as measure_complexity
from mmefficientmod.analysis.memory import peak_bytes, saved_bytes
from mmefficientmod.benchmark.breakdown import time_blocks
from mmefficientmod.benchmark.cases import BenchmarkCase, Settings, Workload
from mmefficientmod.benchmark.inputs import fix_proposals
from mmefficientmod.benchmark.model_specs import ModelSpec
from mmefficientmod.benchmark.official import weights_key
from mmefficientmod.benchmark.published import published_accuracies
from mmefficientmod.benchmark.results import Row
from mmefficientmod.benchmark.workloads import prepare
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.messages import REASON_LENGTH, shorten
from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.models.layers.fast_linear import use_fast_linear
from mmefficientmod.torch_private import graph_breaks, limit_compilations

# In each round, a fast model is run several times, for about this long.
ROUND_SECONDS = 0.1
# Keeps the relative difference finite where all reference values are 0.
SMALLEST_FLOAT = torch.finfo(torch.float32).tiny


@dataclass
class _ReadyModel:
    """A model that is built and warmed up, and what its comparison needs."""

    row: Row
    timer: Timer
    outputs: list[Tensor]  # as the case gives them
    reference: list[Tensor]  # of the eager model before it was folded
    weights: str | None  # see weights_key
    altered: bool  # compiled, exported, folded or with faster layers


def measure_case(
    specs: Sequence[ModelSpec],
    case: BenchmarkCase,
    settings: Settings,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[list[Row], bool]:
    """Measure all models in one case.

    A model that fails ends as a row with the error, and the others go on.
    PyTorch's number of threads and compiled code are restored at the end.

    Args:
        specs: The models.
        case: What is run of each.
        settings: How it is measured.
        progress: Called with the name of a model before each step: one for
            building it and one for each round. Default: nothing.

    Returns:
        A row for each model, and whether all rounds were run; Ctrl-C ends
        them early.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(
        case.batch, 3, case.height, case.width, generator=generator
    ).to(settings.device)
    rows = {spec.name: Row(spec.name) for spec in specs}
    models: dict[str, _ReadyModel] = {}
    with _cpu_threads(case.threads), _fresh_compiler(case, len(specs)):
        _allocate_workspace(settings.device)
        for spec in specs:
            row = rows[spec.name]
            row.published = published_accuracies(spec.published_name)
            progress(spec.name)
            with _record_error(row):
                models[spec.name] = _make_ready(
                    spec, case, settings, image, row
                )
        for model in models.values():
            with _record_error(model.row):
                _compare_outputs(model, models, settings.baselines)
        finished = _time_in_turns(models, settings.rounds, progress)
    del models
    _free_memory(settings.device)
    return list(rows.values()), finished


@contextlib.contextmanager
def _record_error(row: Row) -> Iterator[None]:
    """Turn an error into the row's ``error``, so that the run goes on."""
    try:
        yield
    except Exception as error:
        row.error = error_in_one_line(error)


def error_in_one_line(error: BaseException) -> str:
    """Type and message of an error; only the message of a ConfigError."""
    kind = (
        '' if isinstance(error, ConfigError) else f'{type(error).__name__}: '
    )
    return kind + shorten(str(error), REASON_LENGTH - len(kind))


@contextlib.contextmanager
def _cpu_threads(number: int) -> Iterator[None]:
    """Set how many CPU threads an operator may use; restored at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _fresh_compiler(case: BenchmarkCase, models: int) -> Iterator[None]:
    """Let ``torch.compile`` compile each model, and drop its code at the end.

    PyTorch compiles 8 versions of a function and then gives up. All models of
    a class have the same functions, so 8 versions are allowed for each model.
    """
    if not case.compiled:
        yield
        return
    torch.compiler.reset()
    try:
        with limit_compilations(8 * models):
            yield
    finally:
        torch.compiler.reset()


def _make_ready(
    spec: ModelSpec,
    case: BenchmarkCase,
    settings: Settings,
    image: Tensor,
    row: Row,
) -> _ReadyModel:
    """Build a model, warm it up, and measure everything except time."""
    device = settings.device
    _free_memory(device)  # of the model before
    allocated = _allocated_bytes(device)
    model = spec.build().to(device)
    fix_proposals(model, case)
    # Outputs of whole models are not compared: heads choose, for example
    # proposals, and a rounding difference can change the choice.
    reference = (
        [] if spec.whole else _outputs(prepare(model, case.eager, image))
    )
    # Before folding, which changes the names of the weights.
    weights = weights_key(getattr(model, 'backbone', model))
    folded = settings.deploy and bool(switch_to_deploy(model))
    _count(model, case, row)
    if settings.fast_linear:
        use_fast_linear(model)
    if settings.breakdown and case.mode == 'infer':
        row.breakdown = time_blocks(model, case, image, settings.rounds)
    work = prepare(model, case, image, spec.layout)
    if case.compiled:
        before = graph_breaks()
        work.run()
        row.graph_breaks = graph_breaks() - before
    work.run()  # warm-up
    _measure_memory(model, case, work, image, allocated, row)
    timer = Timer(
        'run()', globals=dict(run=work.run), num_threads=case.threads
    )
    return _ReadyModel(
        row=row,
        timer=timer,
        outputs=[] if spec.whole else _outputs(work),
        reference=reference,
        weights=weights,
        altered=folded or settings.fast_linear or case != case.eager,
    )


def _outputs(work: Workload) -> list[Tensor]:
    """The outputs, computed without TF32, which would hide differences."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return work.outputs()


def _count(model: nn.Module, case: BenchmarkCase, row: Row) -> None:
    row.params = sum(p.numel() for p in model.parameters())
    try:
        row.flops = measure_complexity(model, (case.height, case.width)).flops
    except Exception:
        # Counting traces the model, which fails for some that run well.
        row.flops = None


def _compare_outputs(
    model: _ReadyModel,
    models: Mapping[str, _ReadyModel],
    baselines: Sequence[str],
) -> None:
    """Find the baseline of a model, and compare the model's outputs.

    If a baseline has the same weights as the model, the reference is the
    outputs of that baseline. Otherwise the reference is the outputs of the
    model before it was compiled, exported or folded; if nothing of this was
    done, there is no comparison.
    """
    row = model.row
    same_weights = [
        name
        for name in baselines
        if model.weights
        and name in models
        and models[name].weights == model.weights
    ]
    row.baseline = (same_weights or baselines)[0]
    if same_weights:
        expected = models[row.baseline]
    elif model.altered:
        expected = model
    else:
        return
    differences = [
        (out - x).abs().max() / x.abs().max().clamp_min(SMALLEST_FLOAT)
        for out, x in zip(model.outputs, expected.reference, strict=True)
    ]
    if differences:
        row.difference = torch.stack(differences).max().item()
        row.compared_with = expected.row.model


def _time_in_turns(
    models: dict[str, _ReadyModel],
    rounds: int,
    progress: Callable[[str], None],
) -> bool:
    """Time each model once a round, in reversed order every other round.

    So a machine that slows down within a round delays no model more often than
    the others.

    Args:
        models: A model that fails is removed.
        rounds: Number of rounds.
        progress: Called with the name of a model before it is timed.

    Returns:
        Whether all rounds were run; False after Ctrl-C.
    """
    try:
        for i in range(rounds):
            names = list(models)
            for name in names if i % 2 == 0 else reversed(names):
                progress(name)
                row = models[name].row
                with _record_error(row):
                    measurement = models[name].timer.blocked_autorange(
                        min_run_time=ROUND_SECONDS
                    )
                    row.times.append(measurement.median)
                if row.error:
                    row.times.clear()
                    del models[name]
    except KeyboardInterrupt:
        # Ratios need rounds that every model has run.
        rows = [model.row for model in models.values()]
        complete = min((len(row.times) for row in rows), default=0)
        for row in rows:
            del row.times[complete:]
        return False
    return True


# ------------------------------------------------------------------- memory


def _measure_memory(
    model: nn.Module,
    case: BenchmarkCase,
    work: Workload,
    image: Tensor,
    allocated: int,
    row: Row,
) -> None:
    """Measure the row's ``peak`` and ``saved``.

    Args:
        model: The model, warmed up.
        case: What is run.
        work: The run.
        image: ``(N, 3, H, W)``.
        allocated: Bytes of CUDA memory allocated before the model was built.
        row: Gets the figures.
    """
    if case.exported:
        return  # PyTorch does not see what other programs allocate
    model.zero_grad(set_to_none=True)  # gradients of the warm-up
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


def _allocated_bytes(device: torch.device) -> int:
    if device.type != 'cuda':
        return 0
    return torch.cuda.memory_allocated(device)


def _allocate_workspace(device: torch.device) -> None:
    """Multiply matrices once: cuBLAS keeps the memory that it then allocates.

    Otherwise it would count for the first model.
    """
    if device.type == 'cuda':
        x = torch.ones(8, 8, device=device, requires_grad=True)
        (x @ x).sum().backward()


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
