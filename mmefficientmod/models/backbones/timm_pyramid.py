"""Any pyramid of timm as a backbone of the three toolboxes.

timm (https://github.com/huggingface/pytorch-image-models) has hundreds of
classifiers, and one method that returns the intermediate features of each.
Here they become backbones as OpenMMLab expects them: a tuple of levels at
strides 4, 8, 16 and 32 for an image of any size, options for training, and
weights that fit completely or are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, initialize
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor

from mmefficientmod.checkpoint.loading import load_pretrained, pretrained_part
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    check_weights,
    read_checkpoint,
)
from mmefficientmod.models.backbones.base import (
    check_images,
    check_stages,
    eval_batch_norms,
    parse_out_indices,
)
from mmefficientmod.models.backbones.timm_models import (
    STRIDES,
    create_model,
    enable_checkpointing,
    find_levels,
    modules_up_to,
    restore_activations,
)
from mmefficientmod.models.layers.deploy import Deployable
from mmefficientmod.registry import MODELS


@ROOT_MODELS.register_module()
@MODELS.register_module()
class TimmPyramid(Deployable, BaseModule):
    """A pyramid of features from a classifier of timm.

    Four levels at strides 4, 8, 16 and 32, chosen by the strides that timm
    states for its features. A level at stride 2 is left out. An input of
    ``(N, C, H, W)`` of any size gives, for each level in ``out_indices``, a
    contiguous ``(N, C_i, ceil(H / stride), ceil(W / stride))``.

    If an image's size is not a multiple of the stride, some models drop the
    last rows and columns, some round up, and some fail. The constructor tries
    which sizes the model rounds up. Other images are padded with zeros on the
    right and at the bottom, and the levels are cropped.

    EfficientFormer and EfficientFormerV2, which timm has for one image size
    only, run at any size; see
    :mod:`mmefficientmod.models.backbones.timm_efficientformer`.

    The layers are timm's, under timm's names, below ``timm_model``. Layers
    that no output depends on (head, later stages) are removed.

    Args:
        model_name: The model's name in timm, such as ``repvit_m1_1``, with or
            without a tag of weights.
        in_channels: Channels of the image. Default: 3.
        out_indices: Levels to return, 0 to 3 or -4 to -1, in ascending order;
            an int selects one level. Default: all four.
        drop_path_rate: Stochastic depth, distributed over the blocks by timm.
            Default: the model's own.
        final_norm: Apply the norm that timm's classifier has after its last
            stage to the last level. No effect on models without such a norm.
            Default: False.
        frozen_stages: -1 freezes nothing, 0 the layers before the stage of
            level 0, n the stages of the first n levels as well: no gradients,
            and evaluation mode. Default: -1.
        norm_eval: Keep batch norms in evaluation mode during training.
            Default: False.
        with_cp: Recompute blocks or stages, as timm divides the model, in the
            backward pass to save memory. Batch norms then count each batch
            twice in their running statistics. Default: False.
        timm_args: Further arguments for ``timm.create_model``.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights
            strictly, see :func:`mmefficientmod.checkpoint.load_pretrained`:
            a file of timm's classifier of this name; a checkpoint of MMEngine
            whose backbone is this class or MMPretrain's ``TIMMBackbone``; or
            ``'timm'`` and ``'timm:TAG'`` for the weights in timm's hub, which
            needs a network. Weights of heads and of stages that are not built
            are ignored.

    Attributes:
        out_channels: Channels of each returned level.
        out_strides: Stride of each returned level, in pixels.
        pad_divisor: The image is padded to a multiple of it, in pixels; 1
            for no padding.
        deployed: Whether the model is folded for inference.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model, the model has no such pyramid
            or lacks what an option needs, or an index or a number of stages
            is out of range.

    Example:
        >>> model = TimmPyramid('repvit_m1_1')
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 90))]
        [(1, 64, 16, 23), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    """

    def __init__(
        self,
        model_name: str,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float | None = None,
        final_norm: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        timm_args: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | Sequence[Mapping] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.model_name = model_name
        self.out_indices = parse_out_indices(
            out_indices, len(STRIDES), model_name
        )
        check_stages(self.out_indices, len(STRIDES), frozen_stages, final_norm)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.final_norm = final_norm
        self.in_channels = in_channels

        options = dict(timm_args or {}, in_chans=in_channels)
        if drop_path_rate is not None:
            options['drop_path_rate'] = drop_path_rate
        self._options = options
        model = create_model(model_name, options)
        self._names_in_timm = tuple(model.state_dict())
        levels = find_levels(model, model_name)
        self._stage_ends = tuple(level['module'] for level in levels)
        self.out_channels = tuple(
            levels[i]['num_chs'] for i in self.out_indices
        )
        self.out_strides = tuple(STRIDES[i] for i in self.out_indices)
        self._taps = [levels[i]['index'] for i in self.out_indices]
        model.prune_intermediate_layers(
            self._taps, prune_norm=not final_norm, prune_head=True
        )
        # Imported here, as the module needs timm.
        from mmefficientmod.models.backbones.timm_efficientformer import (
            run_at_any_size,
        )

        run_at_any_size(model)
        if with_cp:
            enable_checkpointing(model, model_name)
        self.timm_model = model

        self.pad_divisor = self._find_pad_divisor()
        self._freeze_stages()

    @staticmethod
    def normalisation(
        backbone: Mapping[str, Any],
    ) -> dict[str, list[float]]:
        """The image normalisation that the weights of a backbone expect.

        Args:
            backbone: The dict of the backbone. If it names a tag of weights,
                the normalisation is that of the tag.

        Returns:
            ``mean`` and ``std`` of the channels, RGB, 0 to 255.
        """
        from timm.models import PretrainedCfg, get_pretrained_cfg

        init_cfg = pretrained_part(backbone.get('init_cfg')) or {}
        name = name_in_hub(
            backbone['model_name'], str(init_cfg.get('checkpoint'))
        )
        weights = get_pretrained_cfg(name or backbone['model_name'])
        weights = weights or PretrainedCfg()  # as timm does
        return {
            key: [round(255 * x, 6) for x in getattr(weights, key)]
            for key in ('mean', 'std')
        }

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint strictly, if it names one.

        Raises:
            CheckpointError: If the file does not fit; the message shows
                both sides.
        """
        init_cfg = pretrained_part(self.init_cfg)
        if init_cfg is not None:
            own = self.state_dict()
            load_pretrained(
                self,
                init_cfg,
                convert=self._rename_timm_keys,
                optional=[k for k in self._own_names() if k not in own],
                read=self._read_weights,
            )
        elif self.init_cfg:
            # MMEngine's own init_weights would also call timm's, which timm
            # did when it built the model.
            initialize(self, self.init_cfg)
        self._is_init = True

    def _own_names(self) -> list[str]:
        """The names here of the weights of timm's whole classifier."""
        return [f'timm_model.{name}' for name in self._names_in_timm]

    def _rename_timm_keys(
        self, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Rename weights of timm, and of its feature wrappers, to our names.

        The wrappers put the model below ``model.``, or join the first two
        parts of a name, ``stages.0.`` to ``stages_0.``. So names are compared
        with those of the classifier as if a dot were an underscore. Names
        that the classifier does not have are kept.
        """
        own = {flat(name): name for name in self._own_names()}
        return {own.get(flat(k), k): value for k, value in weights.items()}

    def _read_weights(self, source: str, map_location: str) -> Any:
        """The checkpoint in a file, or weights of timm's hub.

        Args:
            source: A path; or ``timm`` or ``timm:TAG`` for the hub.
            map_location: The device of the weights.
        """
        name = name_in_hub(self.model_name, source)
        if name is None:
            return read_checkpoint(source, map_location)
        try:
            model = create_model(name, dict(self._options, pretrained=True))
        except Exception as error:  # of timm, the hub's client or the network
            raise CheckpointError(
                f'timm does not get the weights of {name}: {error}. Without a '
                'network, give the path of their file instead'
            ) from error
        weights = model.to(map_location).state_dict()
        check_weights(weights, name)
        return weights

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, C, H, W)`` to one ``(N, C_i, H_i, W_i)`` for each level.

        Raises:
            ValueError: If ``x`` is not a batch of images of ``in_channels``.
        """
        check_images(x, self.in_channels, self.model_name)
        height, width = x.shape[2], x.shape[3]
        if self.pad_divisor > 1:
            right = -width % self.pad_divisor
            bottom = -height % self.pad_divisor
            x = F.pad(x, (0, right, 0, bottom))
        return tuple(
            out[:, :, : -(-height // s), : -(-width // s)].contiguous()
            for out, s in zip(self._features(x), self.out_strides, strict=True)
        )

    def _features(self, x: Tensor) -> list[Tensor]:
        return self.timm_model.forward_intermediates(
            x,
            indices=self._taps,
            norm=self.final_norm,
            output_fmt='NCHW',
            intermediates_only=True,
        )

    def fold(self) -> None:
        """Have timm re-parameterise the model, if it has parallel branches.

        Raises:
            RuntimeError: If that changes the outputs, as it does if a layer
                is not plain.
        """
        from timm.utils.model import reparameterize_model

        original = self.timm_model
        folded = reparameterize_model(original)
        if folded.state_dict().keys() == original.state_dict().keys():
            return
        size = original.pretrained_cfg['input_size'][1:]
        weight = next(original.parameters())
        image = torch.linspace(-2, 2, size[0] * size[1]).reshape(1, 1, *size)
        image = image.to(weight).expand(1, self.in_channels, *size)
        self.eval()
        with torch.no_grad():
            expected = self(image)
            self.timm_model = folded.eval()
            outs = self(image)
        for out, x in zip(outs, expected, strict=True):
            if (out - x).abs().max() > 1e-2 * x.abs().max():
                self.timm_model = original
                raise RuntimeError(
                    'switch_to_deploy() changes the outputs of this '
                    f'{self.model_name}: timm folds plain layers, and one '
                    'layer is not plain, such as a LoRA layer; merge it first'
                )

    def train(self, mode: bool = True) -> TimmPyramid:
        """Set the mode; frozen layers stay in evaluation mode.

        Raises:
            RuntimeError: For training after :meth:`switch_to_deploy`.
        """
        restore_activations(self.timm_model)
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            eval_batch_norms(self)
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0 or self.deployed:
            return
        model, n = self.timm_model, self.frozen_stages
        end = self._stage_ends[max(n - 1, 0)]
        frozen = list(modules_up_to(model, end, included=n > 0))
        for module in frozen:
            module.training = False
        # The model's own parameters, such as position embeddings, belong to
        # the first layers.
        for module in (model, *frozen):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False

    @torch.no_grad()
    def _find_pad_divisor(self) -> int:
        """The smallest divisor for which each level has the right size."""
        self.timm_model.eval()
        weight = next(self.parameters())
        try:
            # A model that rounds up 33 pixels rounds up any number.
            for divisor, size in (1, 33), (32, 32), (64, 64):
                image = weight.new_zeros(1, self.in_channels, size, size)
                try:
                    outs = self._features(image)
                except (RuntimeError, ValueError, AssertionError):
                    continue
                if all(
                    out.shape[-1] == -(-size // stride)
                    for out, stride in zip(outs, self.out_strides, strict=True)
                ):
                    return divisor
        finally:
            self.timm_model.train()
        return 1  # made for one size; it raises for other sizes itself


def name_in_hub(model_name: str, source: str) -> str | None:
    """The name in timm's hub of the weights ``timm`` or ``timm:TAG``.

    Args:
        model_name: The model's name in timm.
        source: ``timm``, ``timm:TAG`` or a path.

    Returns:
        The name, or None for a path.
    """
    kind, _, tag = source.partition(':')
    if kind != 'timm':
        return None
    return f'{model_name.partition(".")[0]}.{tag}' if tag else model_name


def flat(name: str) -> str:
    """The name of a tensor, without the changes that wrappers make."""
    name = re.sub(r'^(timm_model\.)?(model\.)?', '', name)
    return name.replace('.', '_')
