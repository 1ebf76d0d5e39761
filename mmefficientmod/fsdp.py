"""Fully sharded data parallel (FSDP), a shard for each stage of a backbone."""

from __future__ import annotations

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmefficientmod.config import ConfigError
from mmefficientmod.models.backbones.efficientmod import Stage


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
    """MMEngine's FSDP, on the CPU too, and with PyTorch of today.

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
        if get_device() == 'cpu':
            self.model_wrapper = dict(
                self.model_wrapper or {}, device_id='cpu'
            )
        return super()._wrap_model(model)

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


def _check_cpu() -> None:
    try:
        torch.cpu.Stream(priority=-1)
    except TypeError:
        raise ConfigError(
            f'FSDP on the CPU needs a newer PyTorch than {torch.__version__}'
        ) from None
