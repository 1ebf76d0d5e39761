"""A model, its data and its trainings, which take a few milliseconds."""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset


@DATASETS.register_module(force=True)
class Noise(Dataset):
    """Each sample has a number of each generator, and its index."""

    def __init__(self):
        self.metainfo = {}
        self.pipeline = self.add_noise

    @staticmethod
    def add_noise(index):
        noise = [torch.rand(()).item(), np.random.rand(), random.random()]
        return torch.tensor([*noise, index])

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.pipeline(index)

    def get_data_info(self, index):
        """Every second image is upright."""
        return dict(width=4 if index % 2 else 2, height=3)


@MODELS.register_module(force=True)
class Dropped(BaseModel):
    """A model with dropout, which records its losses."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.inputs, self.seen = [], []

    def forward(self, *inputs, mode):
        if isinstance(inputs[0], list):  # not from data parallelism
            (inputs,) = inputs
        self.inputs.append(torch.stack(tuple(inputs)))
        dropped = nn.functional.dropout(torch.stack(tuple(inputs)), 0.5)
        loss = self.linear(dropped).square().mean()
        self.seen.append(loss.item())
        return {'loss': loss} if mode == 'loss' else []

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(data, mode='loss')
        optim_wrapper.update_params(losses['loss'])
        return losses


# With this sampler the data ends, and MMEngine's loop begins it again.
SHUFFLED = dict(type='DefaultSampler', shuffle=True)
ITERATIONS = dict(
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    name='iter_4.pth',
    done=4,
)
LOOPS = {
    'iterations': ITERATIONS,
    'restarts': dict(ITERATIONS, sampler=SHUFFLED),
    'epochs': dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
        sampler=SHUFFLED,
        checkpoint=dict(type='CheckpointHook', interval=1),
        name='epoch_2.pth',
        done=6,
    ),
}


def config(work_dir, loop, workers=0, **more):
    """A config of :data:`LOOPS`, with more or other entries."""
    return Config(
        dict(
            work_dir=str(work_dir),
            train_dataloader=dict(
                dataset=dict(type='Noise'),
                sampler=loop['sampler'],
                batch_size=2,
                num_workers=workers,
                persistent_workers=workers > 0,
            ),
            train_cfg=loop['train_cfg'],
            default_hooks=dict(checkpoint=loop['checkpoint']),
            **{
                'model': dict(type='Dropped'),
                'optim_wrapper': dict(optimizer=dict(type='SGD', lr=0.01)),
                **more,
            },
        )
    )
