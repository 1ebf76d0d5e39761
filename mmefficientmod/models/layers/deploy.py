"""What backbones share that can be folded for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

ModuleT = TypeVar('ModuleT', bound='Foldable')


class Foldable(nn.Module):
    """A module whose weights can be merged for inference, once and for all.

    A class says how by :meth:`fold`. Afterwards the outputs are the same and
    the weights others, so that training is refused, and the weights of one.

    Attributes:
        deployed: Whether it is folded.
    """

    deployed = False
    _folded_keys: frozenset[str] = frozenset()

    def fold(self) -> None:
        """Merge what can be merged, in place."""
        raise NotImplementedError

    def switch_to_deploy(self: ModuleT) -> ModuleT:
        """Fold what can be folded for inference, once the weights are there.

        The outputs are the same, the weights are others: neither training
        nor a checkpoint of training fits any more. Where there is nothing to
        fold, ``deployed`` stays False and all else as it was.

        Returns:
            The module itself, in evaluation mode.

        Raises:
            RuntimeError: If it cannot be folded as it is.
        """
        if not self.deployed:
            before = frozenset(self.state_dict())
            self.fold()
            self._folded_keys = before - frozenset(self.state_dict())
            self.deployed = bool(self._folded_keys)
            if self.deployed:
                self.requires_grad_(False)
        return self.eval()

    def train(self: ModuleT, mode: bool = True) -> ModuleT:
        """Set the mode.

        Raises:
            RuntimeError: For training after :meth:`switch_to_deploy`.
        """
        if mode and self.deployed:
            raise RuntimeError(
                f'this {type(self).__name__} was folded for inference by '
                'switch_to_deploy() and cannot be trained any more; build it '
                'anew and load the weights of the training'
            )
        return super().train(mode)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        # MMEngine would load what fits, and say no more than which does not.
        if any(prefix + key in state_dict for key in self._folded_keys):
            raise RuntimeError(
                f'this {type(self).__name__} was folded for inference by '
                'switch_to_deploy(), and the weights are those of a training; '
                'load them into a new one before it is folded'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def switch_to_deploy(model: nn.Module) -> list[str]:
    """Have every module fold itself that can.

    Args:
        model: The model, changed in place; it cannot be trained afterwards.

    Returns:
        Names of the modules that folded themselves.
    """
    names = []
    for name, module in list(model.named_modules()):
        # What folds itself may hold parts that could, too.
        inside = any(not x or name.startswith(f'{x}.') for x in names)
        if hasattr(module, 'switch_to_deploy') and not inside:
            module.switch_to_deploy()
            # Of ours, some have nothing to fold, and say so.
            if getattr(module, 'deployed', True):
                names.append(name)
    return names
