"""A run that was stopped and resumed sees what one never stopped sees."""

import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from mmefficientmod import cli
from mmefficientmod.randomness import seed_by, seed_samples


@DATASETS.register_module(force=True)
class Noise(Dataset):
    """Samples of which each generator makes a part."""

    metainfo = {}

    def __len__(self):
        return 6

    def __getitem__(self, index):
        noise = [torch.rand(()).item(), np.random.rand(), random.random()]
        return torch.tensor([*noise, index])


@MODELS.register_module(force=True)
class Dropped(BaseModel):
    """A model that is random itself; its losses tell all it saw."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.seen = []

    def forward(self, inputs, mode):
        dropped = nn.functional.dropout(torch.stack(inputs), 0.5)
        loss = self.linear(dropped).square().mean()
        self.seen.append(loss.item())
        return {'loss': loss} if mode == 'loss' else []

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(data, mode='loss')
        optim_wrapper.update_params(losses['loss'])
        return losses


LOOPS = {
    'iterations': dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        sampler=dict(type='InfiniteSampler', shuffle=True),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
        name='iter_4.pth',
        done=4,
    ),
    'restarts': dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        sampler=dict(type='DefaultSampler', shuffle=True),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
        name='iter_4.pth',
        done=4,
    ),
    'epochs': dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
        sampler=dict(type='DefaultSampler', shuffle=True),
        checkpoint=dict(type='CheckpointHook', interval=1),
        name='epoch_2.pth',
        done=6,
    ),
}


def config(work_dir, loop, workers, **more):
    return Config(
        dict(
            model=dict(type='Dropped'),
            work_dir=str(work_dir),
            train_dataloader=dict(
                dataset=dict(type='Noise'),
                sampler=loop['sampler'],
                batch_size=2,
                num_workers=workers,
                persistent_workers=workers > 0,
            ),
            train_cfg=loop['train_cfg'],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(checkpoint=loop['checkpoint']),
            **more,
        )
    )


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', LOOPS)
def test_resumed_as_never_stopped(tmp_path, name, workers):
    loop = LOOPS[name]
    # No seed: the resumed run takes that of the checkpoint.
    whole = cli.build_runner(config(tmp_path / 'whole', loop, workers))
    whole.train()
    np.random.seed(1)  # whatever the state of the generators
    rest = cli.build_runner(
        config(
            tmp_path / 'rest',
            loop,
            workers,
            resume=True,
            load_from=str(tmp_path / 'whole' / loop['name']),
        )
    )
    rest.train()
    assert len(set(whole.model.seen)) == len(whole.model.seen) > loop['done']
    assert rest.model.seen == whole.model.seen[loop['done'] :]
    assert_close(rest.model.state_dict(), whole.model.state_dict())


def test_another_seed_sees_other_samples(tmp_path):
    seen = []
    for seed in (1, 1, 2):
        runner = cli.build_runner(
            config(
                tmp_path,
                LOOPS['iterations'],
                0,
                randomness=dict(seed=seed),
            )
        )
        loader = runner.build_dataloader(
            dict(
                dataset=dict(type='Noise'),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=3,
            ),
            seed,
        )
        seen.append([sample for batch in loader for sample in batch])
    assert_close(seen[0], seen[1])
    assert not torch.equal(torch.stack(seen[0]), torch.stack(seen[2]))


def test_samplers_stay_what_they_are(tmp_path):
    from mmengine.dataset import DefaultSampler
    from torch.utils.data import DataLoader

    loader = DataLoader(Noise(), 2, sampler=DefaultSampler(Noise(), seed=3))
    before = list(loader.sampler)
    seed_samples(loader, 0)
    assert isinstance(loader.sampler, DefaultSampler)
    assert list(loader.sampler) == before
    loader.sampler.set_epoch(1)
    assert list(loader.sampler) != before


def test_every_generator_is_seeded():
    drawn = []
    for key in ((0, 1), (0, 1), (1, 0)):
        seed_by(*key)
        torch_number = torch.rand(()).item()
        drawn.append((random.random(), np.random.rand(), torch_number))
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
