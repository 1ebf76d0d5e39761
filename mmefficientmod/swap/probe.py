"""What a backbone or neck of a config takes and gives, found by trying.

Each is built once, without weights, and run on a black image. The dicts are
those of configs; their types are looked up in the current default scope.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmefficientmod.config.nodes import ConfigError, type_name

SIZE = 256  # side of the image, in pixels


@dataclass(frozen=True)
class Levels:
    """What a backbone returns.

    Attributes:
        channels: Channels of each output.
        strides: Stride of each output, in pixels.
        has_batch_norm: Whether it holds batch norms.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    has_batch_norm: bool


def probe(backbone: Mapping[str, Any]) -> Levels:
    """Build a backbone without weights, and see what it returns.

    Args:
        backbone: Its dict, in the current default scope.

    Raises:
        ConfigError: If it cannot be built, or returns no feature maps.
    """
    kind = type_name(backbone)
    with _undisturbed():
        class_of(backbone)
        try:
            module = MODELS.build(without_weights(backbone))
        except Exception as error:
            raise ConfigError(
                f'the backbone {kind} cannot be built: {error}'
            ) from error
        module.eval()  # by itself: OpenMMLab's train() returns None
        outs, size = _run(module, backbone)
    if isinstance(outs, Tensor):
        outs = (outs,)
    if not isinstance(outs, Sequence) or not all(
        isinstance(x, Tensor) and x.ndim == 4 for x in outs
    ):
        raise ConfigError(
            f'{kind} returns no feature maps (N, C, H, W) that a pyramid '
            'could stand in for'
        )
    return Levels(
        tuple(x.shape[1] for x in outs),
        tuple(_stride(size, x.shape[-1]) for x in outs),
        any(isinstance(m, _BatchNorm) for m in module.modules()),
    )


def _run(module: nn.Module, backbone: Mapping[str, Any]) -> tuple[Any, int]:
    """The outputs for a black image of a size that the backbone takes."""
    own = backbone.get('img_size') or backbone.get('pretrain_img_size')
    own = own[0] if isinstance(own, Sequence) else own
    channels = backbone.get('in_channels', 3)
    failure: Exception | None = None
    # A vision transformer may take no other size than its own.
    for size in dict.fromkeys((SIZE, own or 224, 224)):
        try:
            image = torch.zeros(1, channels, size, size)
            return module(image), size
        except Exception as error:
            failure = failure or error
    raise ConfigError(
        f'{type_name(backbone)} cannot be tried on an image: {failure}'
    ) from failure


def _stride(size: int, out: int) -> int:
    """The power of two that is nearest."""
    ratio = size / out
    return min((2**i for i in range(9)), key=lambda s: abs(s - ratio))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Build and run a model without gradients, and without using up luck."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def without_weights(backbone: Mapping[str, Any]) -> ConfigDict:
    """The dict of a backbone that starts from random weights."""
    backbone = ConfigDict(copy.deepcopy(dict(backbone)))
    backbone.pop('init_cfg', None)
    if 'pretrained' in backbone:
        backbone.pretrained = (
            None if isinstance(backbone.pretrained, str) else False
        )
    return backbone


def class_of(backbone: Mapping[str, Any]) -> type:
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


def parameters_of(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a backbone's class, its parents' included."""
    parameters: dict[str, inspect.Parameter] = {}
    for kind in class_of(backbone).__mro__:
        own = inspect.signature(kind.__init__).parameters
        parameters = {**own, **parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    return parameters


def option_of(backbone: Mapping[str, Any], name: str) -> Any:
    """What a backbone's dict says of an argument, or else its default.

    None where neither says anything.
    """
    if backbone.get(name) is not None:
        return backbone[name]
    default = getattr(parameters_of(backbone).get(name), 'default', None)
    return None if default is inspect.Parameter.empty else default


def parameter_names(backbone: Mapping[str, Any]) -> list[str]:
    """Names of a backbone's parameters in a model."""
    with _undisturbed():
        module = MODELS.build(without_weights(backbone))
    return [f'backbone.{name}' for name, _ in module.named_parameters()]


def not_loaded(backbone: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that a backbone's weights do not reach.

    A tensor that differs between two builds with different seeds is random.

    Args:
        backbone: Its dict with an ``init_cfg``, in the current default scope.

    Raises:
        ConfigError: If the weights cannot be read.
    """
    states = []
    with _undisturbed():
        for seed in range(2):
            torch.manual_seed(seed)
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


def neck_channels(neck: Any, levels: Levels) -> tuple[int, ...]:
    """Channels of what comes out of a neck."""
    feats = [
        torch.zeros(1, channels, SIZE // stride, SIZE // stride)
        for channels, stride in zip(
            levels.channels, levels.strides, strict=True
        )
    ]
    with _undisturbed():
        module = MODELS.build(copy.deepcopy(neck))
        module.eval()
        return tuple(x.shape[1] for x in module(feats))


def is_ours(backbone: Mapping[str, Any]) -> bool:
    return class_of(backbone).__module__.startswith('mmefficientmod.')
