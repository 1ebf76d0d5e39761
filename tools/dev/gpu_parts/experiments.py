"""Part 5: where the time goes, and other ways to compute the same."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.measure import ROUND_SECONDS, error_in_one_line
from mmefficientmod.benchmark.model_specs import parse_model_spec
from mmefficientmod.benchmark.workloads import prepare
from mmefficientmod.models.backbones.efficientmod_variants import ARCHS

from .job import ROOT, Job, Row, Setup
from .timing import OURS, measure, tiny_model

PRODUCTS = ('Repeat', 'Reshape', 'Broadcast', 'BroadcastInPlace')
LINEARS = ('Separate', 'Merged')
OPERATIONS = 15  # rows of the table of operations
PROFILED_RUNS = 3


def jobs(setup: Setup) -> list[Job]:
    """All jobs, those of most worth first."""
    found: list[Job] = []

    def add(name: str, function: Callable[..., list[Row]], *args: Any) -> None:
        found.append(Job(name, functools.partial(function, setup, *args)))

    infer, train = setup.pick(
        (('infer', 64, 224), ('train', 16, 512)),
        (('infer', 1, 32), ('train', 1, 32)),
    )
    low = setup.pick('fp16', 'fp32')
    ours = setup.pick(OURS, (tiny_model(),))
    tools = ROOT / 'tools/dev'
    products = [f'{tools}/product.py:{way}' for way in PRODUCTS]
    linears = [f'{tools}/input_linears.py:{way}' for way in LINEARS]
    if setup.dry:
        products = [tiny_model(products[-1])]
        linears = [tiny_model(way) for way in linears]
    alternatives = (
        ('Product of value and context', products),
        ('Input linears', linears),
    )

    def case(mode: str, batch: int, side: int) -> BenchmarkCase:
        return BenchmarkCase(mode, batch, side, side, low, setup.threads)

    works = setup.pick((train, infer), (infer,))
    for model, work in itertools.product(ours, works):
        add(f'operations, {model}, {work[0]}', operations, model, case(*work))
    add('blocks', measure_ways, 'Time by kind of block', case(*infer), ours)
    for work, (title, ways) in itertools.product(works, alternatives):
        name = f'{title}, {work[0]}'
        add(name, measure_ways, title, case(*work), ways)
    for arch, work, stage in itertools.product(
        setup.pick(('s', 's_conv'), ('s',)), works, range(setup.pick(4, 1))
    ):
        _, batch, side = work
        shape = batch, ARCHS[arch]['dims'][stage], side // 2 ** (stage + 2)
        name = f'depth-wise, {arch}, {batch}x{side}, stage {stage + 1}'
        add(name, depthwise, *shape)
    if not setup.dry:  # compiling takes a minute
        compiled = case('compile', *infer[1:])
        for title, ways in alternatives:
            add(f'{title}, compiled', measure_ways, title, compiled, ways)
    return found


def measure_ways(
    setup: Setup, title: str, case: BenchmarkCase, models: list[str]
) -> list[Row]:
    """Models that compute the same in several ways, side by side."""
    blocks = title == 'Time by kind of block'
    return measure(setup, f'{title}: {case}', case, models, breakdown=blocks)


def operations(setup: Setup, model: str, case: BenchmarkCase) -> list[Row]:
    """The operations that take the most time, by PyTorch's profiler."""
    image = torch.rand(case.batch, 3, case.height, case.width)
    work = prepare(
        parse_model_spec(model).build().to(setup.device),
        case,
        image.to(setup.device),
    )
    for _ in range(setup.pick(3, 1)):
        work.run()
    activities = [ProfilerActivity.CPU]
    if not setup.dry:
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED_RUNS):
            work.run()
        if not setup.dry:
            torch.cuda.synchronize()
    found = profiler.key_averages()
    total = sum(map(functools.partial(own_time, setup), found))
    longest = sorted(
        found, key=functools.partial(own_time, setup), reverse=True
    )
    return [
        Row(
            f'Operations of {model}: {case}',
            {
                'operation': event.key[:60],
                'calls': event.count // PROFILED_RUNS,
                'ms': own_time(setup, event) / PROFILED_RUNS / 1e3,
                'share': own_time(setup, event) / max(total, 1e-9),
            },
        )
        for event in longest[:OPERATIONS]
    ]


def own_time(setup: Setup, event: Any) -> float:
    """Time of an operation without those that it calls, in microseconds.

    PyTorch 2.5 gave the attribute for GPUs another name. The operators that
    start kernels have the time of these kernels, which are events, too: they
    are left out.
    """
    if setup.dry:
        return event.self_cpu_time_total
    if not event.key.startswith('aten::'):
        return 0.0
    if hasattr(event, 'self_device_time_total'):
        return event.self_device_time_total
    return event.self_cuda_time_total


# ------------------------------------------------- depth-wise 7x7 convolution


def depthwise(setup: Setup, batch: int, channels: int, side: int) -> list[Row]:
    """Ways to compute a depth-wise 7x7 convolution of a NHWC tensor.

    ``GB/s`` is the input and the output, each moved once, by the time.
    """
    dtype = setup.pick(torch.float16, torch.float32)
    conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
    conv.to(setup.device, dtype)
    x = torch.rand(batch, channels, side, side, device=setup.device)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    rows = []
    for name, (function, context) in conv_ways(setup, conv).items():
        values: dict[str, Any] = {
            'input': f'{batch}x{channels}x{side}x{side}',
            'way': name,
        }
        given = x.contiguous() if name == 'NCHW' else x
        failed = None
        try:
            with context():
                values |= time_conv(function, given)
            values['GB/s'] = 2e-6 * x.nbytes / values['ms']
        except Exception as problem:
            failed = f'{name}: {error_in_one_line(problem)}'
        rows.append(Row(f'Depth-wise 7x7, {dtype}', values, failed))
    return rows


def conv_ways(
    setup: Setup, conv: nn.Conv2d
) -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Any]]]:
    """For each way, the function and the settings under which it runs."""
    cudnn = torch.backends.cudnn
    as_usual = contextlib.nullcontext
    found: dict[str, Any] = {
        'NHWC': (conv, as_usual),
        'NHWC, without cuDNN': (
            conv,
            functools.partial(cudnn.flags, enabled=False),
        ),
        'NHWC, cuDNN chooses by time': (
            conv,
            functools.partial(cudnn.flags, enabled=True, benchmark=True),
        ),
        'NCHW': (conv, as_usual),
        'NHWC, converted to NCHW and back': (
            lambda x: conv(x.contiguous()).contiguous(
                memory_format=torch.channels_last
            ),
            as_usual,
        ),
    }
    if not setup.dry:
        found['NHWC, torch.compile'] = torch.compile(conv), fresh_compiler
    return found


@contextlib.contextmanager
def fresh_compiler() -> Iterator[None]:
    """Drop the code that ``torch.compile`` made, at the end."""
    try:
        yield
    finally:
        torch.compiler.reset()


def time_conv(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> dict[str, float]:
    """Milliseconds of a forward pass, and of forward and backward pass."""
    x = x.detach().requires_grad_()
    grad = torch.rand_like(function(x))

    def infer() -> None:
        with torch.no_grad():
            function(x)

    def train() -> None:
        torch.autograd.backward(function(x), grad)

    times = {}
    for title, run in (('ms', infer), ('with backward, ms', train)):
        run()
        timer = Timer('run()', globals=dict(run=run))
        measured = timer.blocked_autorange(min_run_time=ROUND_SECONDS / 2)
        times[title] = 1e3 * measured.median
    return times
