"""Fully sharded data parallel (FSDP), with one shard for each stage."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch

# MMEngine's strategies have no public module: it calls them experimental.
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import BaseOptimWrapper, OptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.backbones.base import Stage
from mmefficientmod.registry import FUNCTIONS, STRATEGIES
from mmefficientmod.torch_private import FSDP_WRAPPED_MODULE


@FUNCTIONS.register_module()
def wrap_by_stage(
    module: nn.Module, recurse: bool, nonwrapped_numel: int
) -> bool:
    """An ``auto_wrap_policy`` that makes each stage a unit of FSDP.

    FSDP gathers the weights of a unit when the unit runs. Modules outside
    the stages, such as stem, neck and head, form one unit.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks if it should visit the module's children.
        nonwrapped_numel: Number of weights in no unit yet; not used.

    Returns:
        Whether to visit the children, or whether to wrap the module.
    """
    return recurse or isinstance(module, Stage)


@STRATEGIES.register_module()
class StageFSDPStrategy(FSDPStrategy):
    """MMEngine's FSDP strategy, with settings per parameter and on CPUs.

    Settings per parameter, such as ``paramwise_cfg``, depend on names and
    shapes of parameters and on types of layers, which FSDP changes. So the
    groups of the optimizer are made from a copy of the model that FSDP has not
    wrapped. Gradients are clipped by their norm over all processes.

    Takes the arguments of ``FSDPStrategy``.
    """

    # `_init_state_dict_cfg` and `_wrap_model` are private in MMEngine, and the
    # only steps of its `__init__` and `prepare` that can be overridden.
    model_wrapper: dict | None

    def _init_state_dict_cfg(self, state_dict_cfg: str | dict) -> None:
        super()._init_state_dict_cfg(state_dict_cfg)
        if get_device() == 'cpu':
            # The state is on the CPU already. With offloading, PyTorch would
            # free tensors that it still reads.
            for cfg in (self.state_dict_config, self.optim_state_dict_config):
                cfg.offload_to_cpu = False

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model, without SyncBN where there is no GPU.

        Raises:
            ConfigError: If this version of PyTorch has no FSDP on CPUs.
        """
        if get_device() == 'cpu':
            _check_cpu()
            if isinstance(model, dict):
                model = super().build_model(model)
            # Before the parent records the names of the parameters.
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
        """Build the optimizer wrapper for the wrapped model.

        Args:
            optim_wrapper: Its config.
            model: The wrapped model. Default: the model of the strategy.

        Raises:
            ConfigError: If it has several optimizers.
        """
        model = self.model if model is None else model
        wrapper = super().build_optim_wrapper(optim_wrapper, self._unwrapped)
        if not isinstance(wrapper, OptimWrapper):
            raise ConfigError(
                '--fsdp needs a config with one optimizer, and this one has '
                f'several ({type(wrapper).__name__})'
            )
        names = {p: name for name, p in self._unwrapped.named_parameters()}
        params = {
            name.replace(f'{FSDP_WRAPPED_MODULE}.', ''): p
            for name, p in model.named_parameters()
        }
        for group in wrapper.optimizer.param_groups:
            group['params'] = [params[names[p]] for p in group['params']]
        del self._unwrapped
        if (
            wrapper.clip_grad_kwargs
            and wrapper.grad_name == 'grad_norm'
            and isinstance(model, FullyShardedDataParallel)
        ):
            wrapper.clip_func = partial(_clip_all_shards, model)
        return wrapper

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the state of the optimizer.

        MMEngine passes the arguments in the order of PyTorch 2.0, which later
        versions changed; here they are passed by name.

        Args:
            state_dict: The whole state, as FSDP saved it.
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
    """Clip the gradients of a model, not of this process's shards alone.

    It has the signature of ``torch.nn.utils.clip_grad_norm_`` after the
    model; ``params`` is not used.
    """
    return model.clip_grad_norm_(max_norm, norm_type)


def _check_cpu() -> None:
    try:
        torch.cpu.Stream(priority=-1)  # FSDP does the same
    except TypeError:
        raise ConfigError(
            f'FSDP on the CPU needs a newer PyTorch than {torch.__version__}'
        ) from None
