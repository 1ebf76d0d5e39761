"""Small checkpoints to export, made once in each process."""

import pytest
import torch
from helpers import randomise

from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import build_model
from mmefficientmod.swap.backbone import swap_backbone

CONFIGS = dict(
    cls='mmefficientmod::cls/efficientmod_xxs_in1k.py',
    seg='mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py',
)
# Both kinds of blocks, and all stages.
TINY = dict(
    type='mmefficientmod.EfficientMod',
    arch=dict(
        dims=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        attn_depths=[0, 0, 0, 1],
        attn_mlp_ratios=[2, 2, 2, 2],
        expand_ratios=[1, 2],
    ),
)


@pytest.fixture(scope='session')
def small(tmp_path_factory):
    """The config of a task and a checkpoint of its tiny model.

    Returns a function of the task, ``'cls'`` or ``'seg'``, to the arguments
    of a tool.
    """
    folder = tmp_path_factory.mktemp('small')

    def make(task):
        path = folder / f'{task}.pth'
        if not path.exists():
            cfg = swap_backbone(load_config(CONFIGS[task]), dict(TINY))
            model = randomise(build_model(cfg))
            torch.save(dict(state_dict=model.state_dict(), meta={}), path)
        return [CONFIGS[task], str(path), '--backbone', repr(TINY)]

    return make
