"""Models of timm: building them, their features and their peculiarities.

timm is imported when it is needed: everything else runs without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mmefficientmod.checkpoint.entry import read_by_us
from mmefficientmod.messages import did_you_mean
from mmefficientmod.torch_private import BatchNorm

STRIDES = (4, 8, 16, 32)


def create_model(name: str, options: Mapping[str, Any]) -> Any:
    """A classifier of timm, with random weights by default.

    Args:
        name: Its name in timm.
        options: Arguments of ``timm.create_model``.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model, or the model no stochastic
            depth.
    """
    check_name(name)
    import timm

    try:
        with read_by_us():
            return timm.create_model(name, **options)
    except TypeError as error:
        if 'drop_path_rate' in str(error):
            raise ValueError(
                f'{name} of timm has no stochastic depth: leave drop_path_rate'
                ' out'
            ) from None
        raise


def check_name(name: str) -> None:
    """Check that timm has a model of this name.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model.
    """
    try:
        import timm
    except ImportError:
        raise ImportError(
            f'{name} is a model of timm, which is not installed: '
            'pip install timm'
        ) from None
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), most=3)
        raise ValueError(f'timm {timm.__version__} has no model {name}{hint}')


def find_levels(model: nn.Module, name: str) -> list[dict[str, Any]]:
    """timm's description of the features at strides 4, 8, 16 and 32.

    Args:
        model: A classifier of timm.
        name: Its name, for messages.

    Returns:
        For each stride a dict with ``index`` among the features,
        ``num_chs`` and ``module``, the name of the module that returns it.

    Raises:
        ValueError: If the model has no such features.
    """
    info = list(getattr(model, 'feature_info', None) or ())
    levels = {
        level['reduction']: dict(level, index=i)
        for i, level in enumerate(info)
    }
    if not set(STRIDES) <= set(levels) or not hasattr(
        model, 'forward_intermediates'
    ):
        found = ', '.join(str(level['reduction']) for level in info) or 'none'
        raise ValueError(
            f'{name} of timm gives no pyramid: the strides of its features '
            f'are {found}, and 4, 8, 16 and 32 are needed'
        )
    return [levels[stride] for stride in STRIDES]


def enable_checkpointing(model: Any, name: str) -> None:
    """Have timm recompute activations in the backward pass.

    Raises:
        ValueError: If the model cannot.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise ValueError(
            f'{name} of timm cannot recompute its activations: leave with_cp '
            'out'
        ) from None


def restore_activations(model: nn.Module) -> None:
    """Restore activations that MMEngine's ``sync_bn`` removes from timm.

    Some batch norms of timm apply an activation as well. MMEngine converts
    them to plain synchronised batch norms, or back; these still hold their
    activation, but no longer call it.

    Args:
        model: A model of timm, changed in place.
    """
    from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct

    for module in model.modules():
        converted = not type(module).__module__.startswith('timm.')
        holds = isinstance(module, BatchNorm) and hasattr(module, 'act')
        if converted and holds:
            synchronised = isinstance(module, nn.SyncBatchNorm)
            module.__class__ = (
                SyncBatchNormAct if synchronised else BatchNormAct2d
            )


def modules_up_to(
    model: nn.Module, name: str, included: bool
) -> Iterator[nn.Module]:
    """The modules that a model runs up to one of its modules.

    timm registers modules in the order of their use.

    Args:
        model: A model of timm.
        name: Name of the module.
        included: Whether to yield the module itself and its children, too.
    """
    inside = False
    for key, module in model.named_modules():
        here = f'{key}.'.startswith(f'{name}.')
        if (inside and not here) or (here and not included):
            return
        inside = here
        if here or (key and not name.startswith(f'{key}.')):
            yield module
