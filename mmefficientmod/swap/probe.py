"""Options and outputs of a backbone, found by building and running it.

A backbone or neck is built once, without weights, and run on a black image.
All dicts are those of configs; their types are looked up in the current
default scope.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.rng import forked_rng
from mmefficientmod.torch_private import BatchNorm

SIZE = 256  # side of the image, in pixels


@dataclass(frozen=True)
class Levels:
    """The feature maps that a backbone returns.

    Attributes:
        strides: Stride of each, in pixels.
        channels: Channels of each. Default: not known.
        has_batch_norm: Whether the backbone has batch norms. Default: False.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...] = ()
    has_batch_norm: bool = False


@torch.no_grad()
def probe(backbone: Mapping[str, Any]) -> Levels:
    """Build a backbone without weights and measure what it returns.

    Args:
        backbone: The dict of the backbone.

    Raises:
        ConfigError: If it cannot be built, or returns no feature maps.
    """
    name = type_name(backbone)
    with forked_rng():
        class_of(backbone)  # raises if it is not registered
        try:
            module = MODELS.build(without_weights(backbone))
        except Exception as error:
            raise ConfigError(
                f'the backbone {name} cannot be built: {error}'
            ) from error
        # Not chained: eval() of OpenMMLab's backbones returns None.
        module.eval()
        outs, size = _run(module, backbone)
    if isinstance(outs, Tensor):
        outs = (outs,)
    if not isinstance(outs, Sequence) or not all(
        isinstance(x, Tensor) and x.ndim == 4 for x in outs
    ):
        raise ConfigError(
            f'{name} does not return feature maps (N, C, H, W), which neck '
            'and heads read; choose another backbone, or set the options by '
            'which it returns them'
        )
    return Levels(
        strides=tuple(_stride(size, x.shape[-1]) for x in outs),
        channels=tuple(x.shape[1] for x in outs),
        has_batch_norm=any(isinstance(m, BatchNorm) for m in module.modules()),
    )


def _run(module: nn.Module, backbone: Mapping[str, Any]) -> tuple[Any, int]:
    """Run a backbone on a black image of a size that it accepts.

    Returns:
        The outputs, and the side of the image in pixels.
    """
    own = backbone.get('img_size') or backbone.get('pretrain_img_size')
    own = own[0] if isinstance(own, Sequence) else own
    channels = backbone.get('in_channels', 3)
    failure: Exception | None = None
    # A vision transformer may take images of its own size only.
    for size in dict.fromkeys((SIZE, own or 224, 224)):
        try:
            image = torch.zeros(1, channels, size, size)
            return module(image), size
        except Exception as error:
            failure = failure or error
    raise ConfigError(
        f'{type_name(backbone)} cannot run on an image: {failure}'
    ) from failure


def _stride(size: int, out: int) -> int:
    """The power of two closest to the ratio of two sides."""
    ratio = size / out
    return min((2**i for i in range(9)), key=lambda s: abs(s - ratio))


@torch.no_grad()
def neck_channels(neck: Any, levels: Levels) -> tuple[int, ...]:
    """Channels of each output of a neck.

    Args:
        neck: The dict of the neck, or a list of several.
        levels: Levels of its backbone.
    """
    feats = [
        torch.zeros(1, channels, SIZE // stride, SIZE // stride)
        for channels, stride in zip(
            levels.channels, levels.strides, strict=True
        )
    ]
    with forked_rng():
        module = MODELS.build(copy.deepcopy(neck))
        module.eval()
        return tuple(x.shape[1] for x in module(feats))


def parameter_names(backbone: Mapping[str, Any]) -> list[str]:
    """Names of a backbone's parameters in a model, with ``backbone.``."""
    with forked_rng():
        module = MODELS.build(without_weights(backbone))
    return [f'backbone.{name}' for name, _ in module.named_parameters()]


@torch.no_grad()
def randomly_initialised(backbone: Mapping[str, Any]) -> list[str]:
    """Names of the tensors of a backbone that start from random values.

    They differ between two builds with different seeds. Tensors that the
    weights do not set either, but which start from constants, such as norms,
    are not among them.

    Args:
        backbone: The dict of the backbone; its ``init_cfg`` names weights.

    Raises:
        ConfigError: If the weights cannot be loaded.
    """
    states = []
    for seed in range(2):
        with forked_rng(seed):
            try:
                module = MODELS.build(copy.deepcopy(backbone))
                module.init_weights()
            except Exception as error:
                raise ConfigError(
                    f'{type_name(backbone)} cannot load its weights: '
                    f'{type(error).__name__}: {error}'
                ) from error
        states.append(module.state_dict())
    one, two = states
    return [name for name in one if not torch.equal(one[name], two[name])]


def without_weights(backbone: Mapping[str, Any]) -> ConfigDict:
    """A copy of a backbone's dict that starts from random weights."""
    random = ConfigDict(copy.deepcopy(dict(backbone)))
    random.pop('init_cfg', None)
    if 'pretrained' in random:
        random.pretrained = (
            None if isinstance(random.pretrained, str) else False
        )
    return random


def class_of(backbone: Mapping[str, Any]) -> type:
    """The class of a config's dict.

    Raises:
        ConfigError: If no such class is registered.
    """
    kind = backbone['type']
    found = kind
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            found = registry.get(kind)
    if found is None:
        raise ConfigError(
            f'no module of the type {kind!r} is registered; write the '
            "toolbox before it, as in 'mmpretrain.MobileNetV2', or import "
            'its module by custom_imports'
        )
    return found


def is_ours(backbone: Mapping[str, Any]) -> bool:
    """Whether a backbone is one of this package."""
    return class_of(backbone).__module__.startswith('mmefficientmod.')


def parameters_of(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the class of a backbone, by name.

    Those of its base classes are included as far as ``**kwargs`` passes them
    on.
    """
    parameters: dict[str, inspect.Parameter] = {}
    kind: Any
    for kind in class_of(backbone).__mro__:
        own = inspect.signature(kind.__init__).parameters
        parameters = {**own, **parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    return parameters


def option_of(backbone: Mapping[str, Any], name: str) -> Any:
    """The value of an option: from the dict of a backbone, or its default.

    Args:
        backbone: The dict of the backbone.
        name: Name of the option.

    Returns:
        The value; None if the option has neither.
    """
    if name in backbone:
        return backbone[name]
    default = getattr(parameters_of(backbone).get(name), 'default', None)
    return None if default is inspect.Parameter.empty else default
