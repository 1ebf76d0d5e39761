"""Fully sharded data parallel (FSDP), a shard for each stage of a backbone."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import BaseOptimWrapper, OptimWrapper
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.backbones.base import Stage

# What sharding puts into the names of parameters.
FSDP_WRAPPED_MODULE = '_fsdp_wrapped_module'


@FUNCTIONS.register_module()
def wrap_by_stage(
    module: nn.Module, recurse: bool, nonwrapped_numel: int
) -> bool:
    """An ``auto_wrap_policy`` that gathers the weights stage by stage.

    What is in no stage, as stem, neck and head, is gathered as one.

    Args:
        module: A part of the model.
        recurse: Whether FSDP asks if it shall look for more in that part.
        nonwrapped_numel: Number of its weights; not looked at.
    """
    return recurse or isinstance(module, Stage)


@STRATEGIES.register_module()
class StageFSDPStrategy(FSDPStrategy):
    """MMEngine's FSDP with the optimizer's rules, and on the CPU too.

    Rules for parameters go by their names, shapes and kinds of layers, which
    sharding changes: here they are applied to the model as it was before.
    Gradients are clipped by the norm of all shards.

    Args:
        As those of ``FSDPStrategy``.
    """

    def _init_state_dict_cfg(self, state_dict_cfg: str | dict) -> None:
        super()._init_state_dict_cfg(state_dict_cfg)
        if get_device() == 'cpu':
            # Nothing is to be moved, and PyTorch would free what it reads.
            for cfg in (self.state_dict_config, self.optim_state_dict_config):
                cfg.offload_to_cpu = False

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model, without SyncBN where there is no GPU."""
        if get_device() == 'cpu':
            _check_cpu()
            # Before the parent takes down which parameter has which name.
            if isinstance(model, dict):
                model = super().build_model(model)
            model = revert_sync_batchnorm(model)
        return super().build_model(model)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        self._unwrapped = copy.deepcopy(model).to('meta')
        if get_device() == 'cpu':
            self.model_wrapper = dict(
                self.model_wrapper or {}, device_id='cpu'
            )
        return super()._wrap_model(model)

    def build_optim_wrapper(
        self, optim_wrapper: Any, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        """Build the optimizer wrapper of the wrapped model.

        Raises:
            ConfigError: If it has several optimizers.
        """
        wrapper = super().build_optim_wrapper(optim_wrapper, self._unwrapped)
        if not isinstance(wrapper, OptimWrapper):
            raise ConfigError(
                '--fsdp goes with one optimizer, and the config has several '
                f'({type(wrapper).__name__})'
            )
        names = {p: name for name, p in self._unwrapped.named_parameters()}
        params = {
            name.replace(f'{FSDP_WRAPPED_MODULE}.', ''): p
            for name, p in model.named_parameters()
        }
        for group in wrapper.optimizer.param_groups:
            group['params'] = [params[names[p]] for p in group['params']]
        del self._unwrapped
        if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm':
            wrapper.clip_func = partial(_clip_all_shards, model)
        return wrapper

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the state of the optimizer.

        MMEngine gives the arguments in the order of PyTorch 2.0.
        """
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model,
                optim=self.optim_wrapper.optimizer,
                optim_state_dict=state_dict,
            )
        )


def _clip_all_shards(
    model: FullyShardedDataParallel,
    params: list[nn.Parameter],
    max_norm: float,
    norm_type: float = 2.0,
) -> torch.Tensor:
    """PyTorch's ``clip_grad_norm_`` for a model and not for its shards."""
    return model.clip_grad_norm_(max_norm, norm_type)


def _check_cpu() -> None:
    try:
        torch.cpu.Stream(priority=-1)
    except TypeError:
        raise ConfigError(
            f'FSDP on the CPU needs a newer PyTorch than {torch.__version__}'
        ) from None
