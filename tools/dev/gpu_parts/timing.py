"""Parts 3, 4 and 6: time and memory of models side by side."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmefficientmod.benchmark.cases import DTYPES, BenchmarkCase, Settings
from mmefficientmod.benchmark.measure import measure_case
from mmefficientmod.benchmark.model_specs import (
    HOSTS,
    ModelSpec,
    find_model_specs,
)
from mmefficientmod.benchmark.results import Result
from mmefficientmod.benchmark.tables import result_values
from mmefficientmod.swap.names import BACKBONES

from .job import Job, Row, Setup, checkout

ROUNDS = 5
# Time and peak memory of a training step, ours to the authors' module.
BOUNDS = dict(ratio=0.65, peak_ratio=0.6)
OURS = ('efficientmod_s', 'efficientmod_s_conv')
RIVALS = (
    'repvit_m1_1',
    'repvit_m1_5',
    'fasternet_t2',
    'efficientformerv2_s2',
)
GROWING = (*OURS, 'repvit_m1_1', 'pvt_v2_b1')
SIDES = (224, 384, 512, 768, 1024, 1280)
# Titles of the columns by their keys in the benchmark's tables.
TITLES = {
    'median_ms': 'ms',
    'iqr_ms': 'spread',
    'ratio': 'ratio',
    'peak_mb': 'peak MB',
    'peak_ratio': 'peak ratio',
    'stem_and_downsampling_ms': 'stem ms',
    'modulation_blocks_ms': 'modulation ms',
    'attention_blocks_ms': 'attention ms',
    'difference': 'differs',
    'graph_breaks': 'breaks',
}


def tiny_model(kind: str = 'mmefficientmod.EfficientMod') -> str:
    """The model of a dry run, as the benchmark's command line takes it.

    Args:
        kind: A registered class, or ``FILE.py:CLASS``, that takes ``arch``.
    """
    arch = checkout('tests/helpers.py').TINY
    if '.py:' in kind:
        return f'{kind}(arch={arch})'
    return f"dict(type='{kind}', arch={arch})"


# Models that were built before, by name and config, on the CPU.
_built: dict[tuple[str, str | None], nn.Module] = {}


@dataclasses.dataclass(frozen=True)
class KeptSpec(ModelSpec):
    """A model that is built once, and copied for each further case.

    Attributes:
        dtype: The weights are converted to it; None leaves them in float32.
    """

    dtype: torch.dtype | None = None

    def build(self) -> nn.Module:
        """The model, with weights that are the same in each call."""
        key = self.name, self.config
        if key not in _built:
            _built[key] = super().build()
        model = copy.deepcopy(_built[key])
        return model if self.dtype is None else Converted(model, self.dtype)


class Converted(nn.Module):
    """A backbone whose weights and images are of a dtype.

    Args:
        backbone: Changed in place.
        dtype: The dtype.
    """

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = backbone.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to the outputs of the backbone."""
        return self.backbone(x.to(self.dtype))


def measure(
    setup: Setup,
    table: str,
    case: BenchmarkCase,
    models: Sequence[str],
    within: str | None = None,
    breakdown: bool = False,
    weights: torch.dtype | None = None,
    first: dict[str, Any] | None = None,
) -> list[Row]:
    """Measure models side by side.

    Args:
        setup: What the jobs are run on.
        table: Title of the table.
        case: What is run of each model.
        models: As in :func:`find_model_specs`. Ratios are to the authors'
            module with the same weights if it is there, or else to the first
            model.
        within: The whole model that the backbones go into.
        breakdown: Whether the kinds of blocks are timed.
        weights: Dtype of the weights of backbones alone. Default: float32.
        first: Further columns at the start of each row.

    Returns:
        A row for each model.
    """
    specs = [
        KeptSpec(**vars(spec), dtype=weights)
        for spec in find_model_specs(models, within)
    ]
    baselines = [s.name for s in specs if s.name.startswith('official:')]
    settings = Settings(
        setup.device,
        setup.pick(ROUNDS, 1),
        baselines or [specs[0].name],
        breakdown=breakdown,
    )
    result = Result.planned(specs, case, settings, within)
    result.rows, result.finished = measure_case(specs, case, settings)
    rows = []
    for row, values in zip(result.rows, result_values(result), strict=True):
        cells = dict(first or {}, model=row.model)
        cells |= {TITLES[key]: values[key] for key in TITLES}
        if row.median_ms:
            cells['images/s'] = 1e3 * case.batch / row.median_ms
        failed = row.error or _find_failure(case, row.difference, values)
        if failed:
            failed = f'{row.model} ({case}): {failed}'
        rows.append(Row(table, cells, failed))
    return rows


def _find_failure(
    case: BenchmarkCase, difference: float | None, values: dict[str, Any]
) -> str | None:
    """What is wrong with a row that has no error: numbers, or bounds."""
    tolerance = checkout('tools/benchmark.py').TOLERANCE
    if (
        case.dtype == 'fp32'
        and difference is not None
        and not difference <= tolerance
    ):
        return f'its outputs differ by {difference:.1e} of the largest value'
    is_compared = (
        case.training
        and str(values['baseline']).startswith('official:')
        and values['model'] != values['baseline']
    )
    if is_compared:
        for key, bound in BOUNDS.items():
            value = values[key]  # None if the authors' module failed
            if value is not None and not value <= bound:
                return f'{TITLES[key]} {value:.2f}, bound {bound}'
    return None


# --------------------------------------------------------------------- jobs


def speed_jobs(setup: Setup) -> list[Job]:
    """Part 3: training steps of whole models."""
    ours = list(setup.pick(OURS, (tiny_model(),)))
    if setup.official:
        variants = [name.removeprefix('efficientmod_') for name in ours]
        ours += [f'official:{setup.official}:{x}' for x in variants]
    rivals = [ours[0], *setup.pick(RIVALS, ())]
    sizes = setup.pick(
        dict(fpn=(4, 512, 512), mask_rcnn=(2, 800, 1333)),
        dict(fpn=(2, 64, 64)),
    )
    plan = [
        (host, 'train', 'fp16', models)
        for models in (ours, rivals)
        for host in sizes
    ]
    plan.append(('fpn', 'compile-train', 'fp16', ours))
    plan += [
        (host, 'train', 'bf16', models)
        for models in (ours, rivals)
        for host in sizes
    ]
    plan += [
        ('fpn', 'compile-train', 'bf16', ours),
        ('fpn', 'compile-train', 'fp16', rivals),
        ('mask_rcnn', 'compile-train', 'fp16', ours),
    ]
    if setup.dry:  # compiling takes a minute, and PyTorch 2.1 lacks fp16
        plan = [(host, 'train', 'bf16', ours) for host in sizes]
    jobs = []
    for host, mode, dtype, models in plan:
        case = BenchmarkCase(mode, *sizes[host], dtype, setup.threads)
        size = 'x'.join(map(str, sizes[host]))
        kind = ' and rivals' if models is rivals else ''
        jobs.append(
            Job(
                f'{host}, {mode}, {dtype}{kind}',
                functools.partial(
                    measure,
                    setup,
                    f'{host}, {size}, {mode}, {dtype}{kind}',
                    case,
                    models,
                    HOSTS[host].config,
                ),
            )
        )
    return jobs


def inference_jobs(setup: Setup) -> list[Job]:
    """Part 4: inference of all backbones."""
    ours = [name for name in BACKBONES if name.startswith('efficientmod')]
    known = (*RIVALS, 'efficientformerv2_s1', 'pvt_v2_b1', 'resnet50')
    others = [name for name in BACKBONES if name not in (*ours, *known)]
    groups = [ours, known, *(others[i : i + 6] for i in range(0, 99, 6))]
    groups = [list(group) for group in groups if group]
    # Mode, dtype, batch, side, and the dtype of the weights.
    main = [
        ('cuda-graph', 'fp16', 1, 224, None),
        ('infer', 'fp16', 64, 224, None),
    ]
    further = [
        ('infer', 'fp16', 1, 224, None),
        ('infer', 'fp32', 1, 224, None),
        ('infer', 'fp16', 1, 512, None),
        ('cuda-graph', 'fp16', 1, 512, None),
        ('cuda-graph', 'fp32', 1, 224, torch.float16),
        ('infer', 'fp32', 64, 224, torch.float16),
        ('infer', 'fp32', 64, 224, None),
        ('cuda-graph', 'fp32', 1, 224, None),
    ]
    compiled = [
        ('compile', 'fp16', 64, 224, None),
        ('compile', 'fp16', 1, 224, None),
        ('compile', 'fp16', 1, 512, None),
    ]
    plan = [
        *((case, group) for group in groups for case in main),
        *((case, groups[0]) for case in (*further, *compiled[:1])),
        *((case, group) for group in groups[1:] for case in further),
        *((case, groups[0]) for case in compiled[1:]),
        *((case, group) for group in groups[1:] for case in compiled),
    ]
    if setup.dry:
        plan = [
            (('infer', 'fp32', 1, 32, weights), [tiny_model()])
            for weights in (None, torch.bfloat16)
        ]
    jobs = []
    for (mode, dtype, batch, side, weights), group in plan:
        names = {value: key for key, value in DTYPES.items()}
        kind = f'{names[weights]} weights' if weights else dtype
        title = f'{batch}x{side}, {mode}, {kind}'
        case = BenchmarkCase(mode, batch, side, side, dtype, setup.threads)
        run = functools.partial(
            measure, setup, title, case, group, weights=weights
        )
        jobs.append(Job(f'{title}, {group[0]} and so on', run))
    return jobs


def growth_jobs(setup: Setup) -> list[Job]:
    """Part 6: time and memory from 224 to 1280."""
    jobs = []
    models = setup.pick(GROWING, (tiny_model(),))
    for side in setup.pick(SIDES, (32,)):
        for mode in ('infer', 'train'):
            dtype = setup.pick('fp16', 'fp32')
            case = BenchmarkCase(mode, 1, side, side, dtype, setup.threads)
            run = functools.partial(
                measure,
                setup,
                f'Growth, {mode}, batch 1, {dtype}',
                case,
                models,
                breakdown=mode == 'infer',
                first={'side': side},
            )
            jobs.append(Job(f'{mode}, {side}', run))
    return jobs
