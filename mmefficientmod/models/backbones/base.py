"""The base of our own backbones: stages, outputs, freezing, loading."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmefficientmod.checkpoint.loading import load_pretrained, pretrained_part
from mmefficientmod.models.layers.layout import to_nchw_view
from mmefficientmod.models.layers.recompute import recompute
from mmefficientmod.models.layers.tracing import is_traced
from mmefficientmod.torch_private import BatchNorm


class Stage(nn.Module):
    """One stage: a downsampling layer, then blocks.

    Args:
        downsample: ``(N, C_in, H, W) -> (N, H', W', C)``; None in the first
            stage, which the stem precedes.
        blocks: Each ``(N, H', W', C) -> (N, H', W', C)``.
        with_cp: Recompute each block in the backward pass, to save memory.
        channels_last: Whether the modules work on ``(N, H, W, C)``, as above;
            False for ``(N, C, H, W)`` everywhere. Default: True.
    """

    def __init__(
        self,
        downsample: nn.Module | None,
        blocks: Sequence[nn.Module],
        with_cp: bool,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C_in) -> (N, H', W', C)``."""
        if self.downsample is not None:
            x = self.downsample(to_nchw_view(x) if self.channels_last else x)
        for block in self.blocks:
            x = recompute(block, x) if self.with_cp else block(x)
        return x


class PyramidBackbone(BaseModule):
    """A stem, stages at strides 4, 8, 16, ..., and a norm after the last.

    A subclass builds ``stem``, ``(N, C, H, W) -> (N, H/4, W/4, C_0)``, then
    :attr:`num_built` ``stages``, and ``norm`` (None for no norm), and calls
    :meth:`_freeze_stages` at the end. Where :attr:`channels_last` is False,
    all of them give ``(N, C, H, W)``.

    Args:
        dims: Channels of each stage.
        out_indices: Stages to return, in ascending order; negative indices
            count from the last stage, an int selects one stage.
        final_norm: Whether a norm follows the last stage.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the
            first n stages.
        norm_eval: Keep batch norms in evaluation mode while training.
        init_cfg: MMEngine's; see :meth:`init_weights`.

    Attributes:
        out_channels: Channels of each returned level.
        out_strides: Stride of each returned level, in pixels.
        channels_last: Whether tensors inside are ``(N, H, W, C)``.

    Raises:
        ValueError: For an index or a number of stages out of range.
    """

    channels_last = True
    stem: nn.Module
    stages: nn.ModuleList
    norm: nn.Module | None

    def __init__(
        self,
        dims: Sequence[int],
        out_indices: int | Sequence[int],
        final_norm: bool,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: Mapping[str, Any] | Sequence[Mapping] | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_stages = num_stages = len(dims)
        self.out_indices = parse_out_indices(
            out_indices, num_stages, type(self).__name__
        )
        check_stages(self.out_indices, num_stages, frozen_stages, final_norm)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2**i for i in self.out_indices)

    @property
    def num_built(self) -> int:
        """Number of stages that are built: up to the last in ``out_indices``.

        No output depends on later stages. Their parameters would never get a
        gradient, which distributed training refuses.
        """
        return self.out_indices[-1] + 1

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint strictly, if it names one.

        Raises:
            CheckpointError: If the file does not fit; the message shows
                both sides.
        """
        init_cfg = pretrained_part(self.init_cfg)
        if init_cfg is None:
            super().init_weights()
            return
        later = range(len(self.stages), self.num_stages)
        load_pretrained(
            self,
            init_cfg,
            convert=self._rename_keys,
            optional=('norm.', 'head.', *(f'stages.{i}.' for i in later)),
        )
        self._is_init = True

    def _rename_keys(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename weights from other projects to the names of this module."""
        return dict(weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, C, H, W)`` to one ``(N, C_i, H_i, W_i)`` for each level.

        Raises:
            ValueError: If ``x`` is not a batch of images of the right
                channels.
        """
        # The stem's own number, as a user may have replaced its convolution.
        proj = getattr(self.stem, 'proj', None)
        check_images(
            x, getattr(proj, 'in_channels', None), type(self).__name__
        )
        outs = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                is_last = i == len(self.stages) - 1
                out = x
                if is_last and self.norm is not None:
                    out = self._final_norm(self.norm, x)
                if self.channels_last:
                    out = to_nchw_view(out)
                outs.append(out.contiguous())
        return tuple(outs)

    def _final_norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        """The norm after the last stage, in the layout of the stages."""
        return norm(x)

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning-rate decay.

        The stem is layer 0. Each stage is one layer, but three blocks of the
        deep third stage are one layer. ConvNeXt's recipes count like this,
        so that their decay rates suit. Final norm and heads are the last
        layer.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: The backbone's own prefix there.

        Returns:
            The layer and the number of layers.
        """
        groups = [1] * len(self.stages)
        if len(groups) > 2:
            blocks = self.stages[2].get_submodule('blocks')
            groups[2] = math.ceil(len(list(blocks.children())) / 3)
        num_layers = 2 + sum(groups)
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        part, *inner = param_name[len(prefix) :].split('.')
        if part == 'stem':
            return 0, num_layers
        if part != 'stages':
            return num_layers - 1, num_layers
        stage = int(inner[0])
        depth = 1 + sum(groups[:stage])
        if groups[stage] > 1 and inner[1] == 'blocks':
            depth += int(inner[2]) // 3
        return depth, num_layers

    def train(self, mode: bool = True) -> PyramidBackbone:
        """Set the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            eval_batch_norms(self)
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.stem, *self.stages[: self.frozen_stages]]
        if self.frozen_stages == len(self.stages) and self.norm is not None:
            frozen.append(self.norm)
        for module in frozen:
            module.eval()
            module.requires_grad_(False)


def check_images(x: Any, channels: int | None, model: str) -> None:
    """Raise one sentence if the input of a backbone is no batch of images.

    Does nothing while the model is traced.

    Args:
        x: The input.
        channels: Channels that the model reads; None if that is unknown.
        model: Name of the model, for the message.

    Raises:
        ValueError: If the input is not a floating-point tensor
            ``(N, C, H, W)`` with these channels.
    """
    if is_traced(x):
        return
    wanted = f'(N, {"C" if channels is None else channels}, H, W)'
    expects = f'{model} expects a batch of images, a tensor {wanted}'
    if not isinstance(x, Tensor):
        raise ValueError(f'{expects}, and was given {type(x).__name__}')
    shape = tuple(x.shape)
    if x.ndim != 4:
        hint = ': add the batch dimension, as in image[None]'
        raise ValueError(
            f'{expects}, and was given the shape {shape}'
            + (hint if x.ndim == 3 else '')
        )
    if channels is not None and shape[1] != channels:
        hint = (
            'move the channels to the front, as in images.permute(0, 3, 1, 2)'
            if shape[3] == channels
            else f'build it with in_channels={shape[1]}, or convert the images'
        )
        raise ValueError(f'{expects}, and was given the shape {shape}: {hint}')
    if not x.is_floating_point():
        raise ValueError(
            f'{expects} of floating-point numbers, and was given {x.dtype}: '
            'convert it, as in images.float(), and normalise it as in '
            'training'
        )


def init_linear(module: nn.Module) -> None:
    """Truncated normal (0.02) and zero bias for a linear layer.

    Other modules stay as they are; for ``nn.Module.apply``.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def drop_path_rates(last: float, num_blocks: int) -> Iterator[float]:
    """The drop path rate of each block, rising linearly from 0 to ``last``.

    Raises:
        ValueError: If ``last`` is not a probability below 1.
    """
    if not 0 <= last < 1:
        raise ValueError(f'drop_path_rate={last} is not a probability below 1')
    return iter(torch.linspace(0, last, num_blocks).tolist())


def parse_variant(
    arch: str | Mapping[str, Any],
    variants: Mapping[str, Mapping[str, Any]],
    model: str,
    per_stage: Sequence[str],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of a variant, checked.

    Args:
        arch: Name of a variant, or its settings.
        variants: Settings by name; all have the same keys.
        model: Name of the backbone, for messages.
        per_stage: Keys with one value for each of ``dims``.
        defaults: Values of the keys that a dict may leave out.

    Raises:
        ValueError: For an unknown name, missing or unknown keys, or a wrong
            number of values; the message lists the possible ones.
    """
    keys = list(next(iter(variants.values())))
    if isinstance(arch, str):
        settings = variants.get(arch.replace('-', '_'))
        if settings is None:
            raise ValueError(
                f'{model} has no arch {arch!r}; the variants are '
                f'{", ".join(variants)}, or give a dict with the keys '
                f'{", ".join(keys)}'
            )
        return dict(settings)
    settings = {**defaults, **arch}
    if set(settings) != set(keys):
        missing = ', '.join(sorted(set(keys) - set(settings))) or 'none'
        unknown = ', '.join(sorted(set(settings) - set(keys))) or 'none'
        raise ValueError(
            f'the arch dict of {model} has missing keys: {missing}; '
            f'unknown keys: {unknown}'
        )
    for key in per_stage:
        if len(settings[key]) != len(settings['dims']):
            raise ValueError(
                f'the arch dict of {model} has {len(settings["dims"])} '
                f'dims but {len(settings[key])} {key}; each needs one value '
                'for each stage'
            )
    return settings


def check_stages(
    out_indices: Sequence[int],
    num_stages: int,
    frozen_stages: int,
    final_norm: bool,
) -> None:
    """Check options against the number of stages.

    Raises:
        ValueError: If ``frozen_stages`` is out of range, or ``final_norm`` is
            set for a last stage that ``out_indices`` leaves out.
    """
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(
            f'frozen_stages={frozen_stages} is out of range: -1 freezes '
            f'nothing, 0 the stem, 1 to {num_stages} stages as well'
        )
    if final_norm and out_indices[-1] < num_stages - 1:
        raise ValueError(
            f'final_norm=True normalises the last stage, which '
            f'out_indices={tuple(out_indices)} leaves out'
        )


def eval_batch_norms(module: nn.Module) -> None:
    """Put the batch norms of a module into evaluation mode."""
    for norm in module.modules():
        if isinstance(norm, BatchNorm):
            norm.eval()


def parse_out_indices(
    out_indices: int | Sequence[int], num_stages: int, model: str
) -> tuple[int, ...]:
    """Stage indices as ascending numbers from 0.

    Args:
        out_indices: Indices from 0, or from -1 for the last stage.
        num_stages: Number of stages.
        model: Name of the backbone, for messages.

    Raises:
        ValueError: If there is no index, one is out of range, or they are
            not in ascending order.
    """
    if isinstance(out_indices, int):
        out_indices = (out_indices,)
    valid = f'{-num_stages} to {num_stages - 1}'
    for i in out_indices:
        if not -num_stages <= i < num_stages:
            raise ValueError(
                f'out_indices={tuple(out_indices)} is out of range: '
                f'{model} has {num_stages} stages, indices {valid}'
            )
    indices = tuple(i % num_stages for i in out_indices)
    if not indices or list(indices) != sorted(set(indices)):
        raise ValueError(
            f'out_indices={tuple(out_indices)} must name at least one stage, '
            f'each once and in ascending order, of {valid}'
        )
    return indices
