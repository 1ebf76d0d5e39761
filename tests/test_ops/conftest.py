"""What the tests of the ops share."""

import importlib
from types import ModuleType

import pytest
import torch

from mmefficientmod.ops import install, is_standin

install()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def mmcv_ops() -> ModuleType:
    """mmcv's own functions, which call the stand-in."""
    if not is_standin():
        pytest.skip('mmcv has compiled ops here')
    return importlib.import_module('mmcv.ops')
