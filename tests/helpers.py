"""Models and weights that several test files share."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import config as config_module
from mmengine.config import utils as config_utils
from torch import Tensor, nn
from torch.testing import assert_close
from yapf.yapflib import yapf_api

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod_weights import (
    rename_official_keys,
)

ROOT = Path(__file__).parents[1]
VECTORS = json.loads((ROOT / 'tests/data/official_vectors.json').read_text())
OFFICIAL = {
    'xxs': VECTORS['efficientMod_xxs'],
    'xs': VECTORS['efficientMod_xs'],
    's': VECTORS['efficientMod_s'],
    's_conv': VECTORS['efficientMod_s_Conv'],
}
# Every kind of block, in the smallest network with four stages.
TINY = dict(
    dims=(8, 16, 24, 32),
    depths=(2, 2, 1, 1),
    attn_depths=(0, 0, 1, 1),
    expand_ratios=(1, 3),
    attn_mlp_ratios=(2, 2, 2, 2),
)
# The same without attention, with batch norms.
TINY_PHONE = {**TINY, 'attn_depths': (0, 0, 0, 0), 'block': 'phone'}
# EdgeViT in the same widths.
TINY_EDGEVIT = dict(
    dims=TINY['dims'], depths=(1, 1, 1, 1), head_dim=8, sr_ratios=(4, 2, 2, 1)
)


# Files that MMEngine read, and configs that it formatted.
_load_once = functools.cache(config_utils.load)
_formatted: dict[tuple[str, str], tuple] = {}


@contextlib.contextmanager
def configs_read_and_formatted_once() -> Iterator[None]:
    """Within a block, MMEngine keeps what it reads and formats.

    For each ``mmseg::`` in a config it reads all metafiles of
    MMSegmentation. For what it cannot find among them, such as a shared
    base, it raises, so that not its answer can be kept, but what it reads.
    It formats the config of a run four times, which takes longer than a few
    training steps. The result depends on the text alone.
    """
    format_code = yapf_api.FormatCode

    def format_once(text: str, **options) -> tuple:
        key = text, repr(options)
        if key not in _formatted:
            _formatted[key] = format_code(text, **options)
        return _formatted[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_utils, 'load', _load_once)
        patch.setattr(yapf_api, 'FormatCode', format_once)
        patch.setattr(config_module, 'FormatCode', format_once, raising=False)
        yield


@functools.cache
def official_weights(arch: str) -> dict[str, Tensor]:
    """The weights with which the authors' code gave the vectors, in float64.

    Each tensor is drawn from its name, so that no file of weights is needed.
    The names are the authors'.
    """
    weights = {}
    for key, shape in OFFICIAL[arch]['state_dict'].items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        w = rng.standard_normal(shape)
        if len(shape) >= 2:
            w = w / math.sqrt(math.prod(shape[1:]))
        elif key.endswith(('norm.weight', 'norm1.weight', 'norm2.weight')):
            w = 1 + 0.1 * w
        elif key.endswith('gamma_1'):
            w = 0.5 * w
        else:
            w = 0.1 * w
        weights[key] = torch.from_numpy(np.asarray(w))
    return weights


def official_model(
    arch: str, dtype: torch.dtype = torch.float64, **kwargs
) -> EfficientMod:
    """EfficientMod with the weights of :func:`official_weights`."""
    model = EfficientMod(arch, **kwargs).to(dtype)
    weights = rename_official_keys(official_weights(arch))
    names = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in weights.items() if k in names})
    return model.eval()


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights far from the initial ones, so that each layer acts."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator).to(p)
        if p.ndim > 1:
            p.data = noise / math.sqrt(p[0].numel())
        else:
            p.data = 0.5 + 0.2 * noise
    return model


def assert_matches(output: Tensor, vector: dict, tolerance: float) -> None:
    """Compare an output with samples, mean and deviation of a vector."""
    assert list(output.shape) == vector['shape']
    scale = max(abs(v) for v in vector['samples'])
    index = np.linspace(0, output.numel() - 1, 48).astype(int)
    expected = torch.tensor(vector['samples'], dtype=torch.float64)
    got = output.reshape(-1)[index].double()
    assert_close(got, expected, rtol=0, atol=tolerance * scale)
    std = output.double().std(unbiased=False).item()
    assert output.double().mean().item() == pytest.approx(
        vector['mean'], abs=tolerance * vector['std']
    )
    assert std == pytest.approx(vector['std'], rel=tolerance)


def load_pretrained(
    backbone: type[nn.Module], path: str | Path, *args, **kwargs
) -> nn.Module:
    """Build a backbone whose ``init_cfg`` names a file, and load the file.

    Args:
        backbone: Its class.
        path: The file.
        *args: Arguments of the class.
        **kwargs: Further ones; ``prefix`` and ``use_ema`` go to ``init_cfg``.
    """
    options = {k: kwargs.pop(k) for k in ('prefix', 'use_ema') if k in kwargs}
    model = backbone(
        *args,
        init_cfg=dict(type='Pretrained', checkpoint=str(path), **options),
        **kwargs,
    )
    model.init_weights()
    return model
