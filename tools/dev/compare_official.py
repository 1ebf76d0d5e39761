"""Compare our EfficientMod with the authors' module, side by side.

Takes the file ``models/EfficientMod.py`` of a copy of the authors' repository
(https://github.com/ma-xu/EfficientMod); it is imported, never copied. Both
get the same random weights; outputs must agree, then time and the bytes that
autograd saves are measured round by round in turn, so that a machine whose
speed drifts hits both alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from mmefficientmod import EfficientMod, cli
from mmefficientmod.config import ConfigError
from mmefficientmod.models.backbones.efficientmod import rename_official_keys

NAMES = {
    'xxs': 'efficientMod_xxs',
    'xs': 'efficientMod_xs',
    's': 'efficientMod_s',
    's_conv': 'efficientMod_s_Conv',
}


class OfficialPyramid(nn.Module):
    """The authors' classifier as their dense models use it.

    Four stage outputs before any downsampling, ``(N, C_i, H_i, W_i)``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        outs = []
        x = self.model.patch_embed(x.permute(0, 2, 3, 1))
        for layer in self.model.layers:
            for block in layer.blocks:
                x = block(x)
            outs.append(x.permute(0, 3, 1, 2).contiguous())
            if layer.downsample is not None:
                x = layer.downsample(x)
        return outs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--official', required=True, metavar='PATH')
    parser.add_argument(
        '--arch', nargs='+', choices=NAMES, default=['s', 's_conv']
    )
    parser.add_argument(
        '--inputs', nargs='+', default=['1x224', '2x512'], metavar='NxSIDE'
    )
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', metavar='FILE', help='JSON to write')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    official = import_file(args.official)
    rows = []
    for arch in args.arch:
        for size in args.inputs:
            batch, side = (int(n) for n in size.split('x'))
            image = torch.randn(batch, 3, side, side, device=args.device)
            pair = build_pair(official, arch, args.device)
            row = dict(arch=arch, batch=batch, side=side)
            row |= measure(pair, image, args.rounds)
            rows.append(row)
    show(rows, args)
    if args.out:
        Path(args.out).write_text(
            json.dumps(dict(rows=rows, machine=machine(args)), indent=2)
        )
    worst = max(r['difference'] for r in rows)
    if worst > 1e-5:
        sys.exit(f'outputs differ by {worst:.1e} of their largest value')


def import_file(path: str):
    """Import the authors' file.

    Raises:
        ConfigError: If it is not there or is another file.
    """
    if not Path(path).is_file():
        raise ConfigError(f'--official: {path} does not exist')
    spec = importlib.util.spec_from_file_location('official', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules['official'] = module  # where timm's registry looks
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it uses old names of timm
        spec.loader.exec_module(module)
    if not hasattr(module, 'efficientMod_s'):
        raise ConfigError(f'--official: {path} defines no efficientMod_s')
    return module


def build_pair(official, arch: str, device: str) -> dict[str, nn.Module]:
    """Both models with the same weights, far from the initial ones."""
    torch.manual_seed(0)
    theirs = getattr(official, NAMES[arch])()
    for p in theirs.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, 0.5, 0.2)
    ours = EfficientMod(arch, final_norm=True)
    weights = rename_official_keys(theirs.state_dict())
    ours.load_state_dict({k: weights[k] for k in ours.state_dict()})
    ours.norm = theirs.norm = theirs.head = None
    for model in (theirs, ours):
        for module in model.modules():
            if hasattr(module, 'drop_prob'):
                module.drop_prob = 0.0  # its noise differs between the two
    return {
        'official': OfficialPyramid(theirs).to(device),
        'ours': ours.to(device),
    }


def measure(
    pair: dict[str, nn.Module], image: Tensor, rounds: int
) -> dict[str, float]:
    """Difference, milliseconds and bytes of both, and the ratios."""
    row = {}
    for model in pair.values():
        model.eval()
    with torch.no_grad():
        theirs, ours = (m(image) for m in pair.values())
        row['difference'] = max(
            ((a - b).abs().max() / a.abs().max()).item()
            for a, b in zip(theirs, ours, strict=True)
        )
        row |= interleave('forward', pair, lambda m: m(image), rounds)
    for model in pair.values():
        model.train()
    row |= interleave(
        'forward+backward',
        pair,
        lambda m: sum(x.square().mean() for x in m(image)).backward(),
        max(3, rounds // 2),
    )
    saved = {name: saved_bytes(m, image) for name, m in pair.items()}
    row |= {f'saved MB {name}': n / 1e6 for name, n in saved.items()}
    row['saved ratio'] = saved['ours'] / saved['official']
    return row


def interleave(
    what: str,
    pair: dict[str, nn.Module],
    work: Callable[[nn.Module], object],
    rounds: int,
) -> dict[str, float]:
    """Median milliseconds of each, measured in turn."""
    timers = {
        name: Timer(
            'work(model)',
            globals=dict(work=work, model=model),
            num_threads=torch.get_num_threads(),
        )
        for name, model in pair.items()
    }
    times: dict[str, list[float]] = {name: [] for name in pair}
    for timer in timers.values():
        timer.timeit(1)  # warm-up
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(1e3 * timer.timeit(1).mean)
    median = {name: statistics.median(t) for name, t in times.items()}
    return {
        **{f'{what} ms {name}': t for name, t in median.items()},
        f'{what} ratio': median['ours'] / median['official'],
    }


def saved_bytes(model: nn.Module, image: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outs = model(image)
    for tensor in [*model.parameters(), image]:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del outs
    return sum(storages.values())


def machine(args: argparse.Namespace) -> dict[str, str | int]:
    """What the figures were measured on."""
    cpu = Path('/proc/cpuinfo')
    name = 'unknown'
    if cpu.is_file():
        lines = cpu.read_text().splitlines()
        names = [x.partition(': ')[2] for x in lines if 'model name' in x]
        name = names[0] if names else name
    if args.device != 'cpu':
        name = torch.cuda.get_device_name(args.device)
    return dict(device=name, threads=args.threads, torch=torch.__version__)


def show(rows: list[dict[str, float]], args: argparse.Namespace) -> None:
    table = Table(
        title=', '.join(f'{k} {v}' for k, v in machine(args).items())
    )
    for column in ('arch', 'input', 'difference', 'forward ms',
                   'forward+backward ms', 'saved MB'):  # fmt: skip
        table.add_column(column, justify='right')
    for r in rows:
        cells = [
            f'{r[f"{what} official"]:.0f} to {r[f"{what} ours"]:.0f}, '
            f'{r[f"{what.split()[0]} ratio"]:.2f} x'
            for what in ('forward ms', 'forward+backward ms', 'saved MB')
        ]
        table.add_row(
            r['arch'],
            f'{r["batch"]}x3x{r["side"]}x{r["side"]}',
            f'{r["difference"]:.0e}',
            *cells,
        )
    Console(width=110).print(table)


if __name__ == '__main__':
    cli.run(main)
