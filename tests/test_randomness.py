"""A run that was stopped and resumed sees what one never stopped sees."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from mmefficientmod.engine.runner import build_runner
from mmefficientmod.engine.seeding import seed_by, seed_samples


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
    whole = build_runner(config(tmp_path / 'whole', loop, workers))
    whole.train()
    np.random.seed(1)  # whatever the state of the generators
    rest = build_runner(
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
        runner = build_runner(
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


def losses(work_dir):
    """What the log of each iteration says of the losses."""
    found = {}
    for path in Path(work_dir).glob('*/vis_data/scalars.json'):
        for line in path.read_text().splitlines():
            logged = json.loads(line)
            values = {k: v for k, v in logged.items() if 'loss' in k}
            if values:  # not a validation
                found[logged['step']] = values
    return found


# A task a line: a config, the checkpoint of half a run and that of a whole
# one, and what makes it short.
EPOCHS = ['train_cfg.max_epochs=2', 'default_hooks.checkpoint.interval=1']
TASKS = [
    pytest.param(
        'seg/fpn_efficientmod_xxs_ade20k.py',
        ('iter_2.pth', 'iter_4.pth'),
        ['train_cfg.max_iters=4', 'default_hooks.checkpoint.interval=2'],
        marks=pytest.mark.slow,
    ),
    pytest.param(
        'det/mask_rcnn_efficientmod_xxs_fpn_1x_coco.py',
        ('epoch_1.pth', 'epoch_2.pth'),
        [*EPOCHS, 'train_dataloader.dataset.indices=2'],
        marks=pytest.mark.slow,
    ),
    (
        'cls/efficientmod_xxs_in1k.py',
        ('epoch_1.pth', 'epoch_2.pth'),
        [
            *EPOCHS,
            'train_dataloader.dataset.indices=8',
            'train_dataloader.batch_size=4',
        ],
    ),
]


@pytest.mark.parametrize(('name', 'checkpoints', 'options'), TASKS)
def test_tasks_resumed_as_never_stopped(
    tool, mini_place, name, checkpoints, options
):
    options = [
        '--cfg-options',
        *options,
        'train_cfg.val_interval=1',
        'val_dataloader.dataset.indices=1',
        'default_hooks.logger.interval=1',
        'log_processor.window_size=1',
        'model.backbone.drop_path_rate=0.3',
    ]
    argv = [f'mmefficientmod::{name}', '--mini', '--work-dir']
    tool('train').main([*argv, 'whole', *options])
    # As a run leaves it that is stopped after its first checkpoint.
    half, end = checkpoints
    Path('rest').mkdir()
    shutil.copy(f'whole/{half}', 'rest')
    Path('rest/last_checkpoint').write_text(f'rest/{half}')
    seed_by(7)  # whatever the state of the generators
    tool('train').main([*argv, 'rest', '--resume', *options])
    whole, rest = losses('whole'), losses('rest')
    done = len(whole) // 2
    assert sorted(whole) == list(range(1, 2 * done + 1))
    assert rest == {
        step: pytest.approx(whole[step], rel=1e-6)
        for step in range(done + 1, 2 * done + 1)
    }
    one, two = (
        torch.load(f'{folder}/{end}', weights_only=False)
        for folder in ('whole', 'rest')
    )
    assert_close(two['state_dict'], one['state_dict'])
    assert_close(two['optimizer']['state'], one['optimizer']['state'])
    assert_close(two.get('ema_state_dict', {}), one.get('ema_state_dict', {}))
