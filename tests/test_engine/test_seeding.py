"""Samples and steps are seeded by their position in the training."""

import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import TRANSFORMS
from tiny_training import LOOPS, Noise, config
from torch.testing import assert_close

from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.engine.runner import ToolRunner, build_runner
from mmefficientmod.engine.seeding import (
    SeededDataset,
    build_positioned_sampler,
    seed_by,
)


@TRANSFORMS.register_module(force=True)
class SwitchedPipeline:
    def __call__(self, index):
        return torch.full((4,), 9.0)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', LOOPS)
def test_resumed_run_has_the_losses_of_an_unstopped_run(
    tmp_path, name, workers
):
    loop = LOOPS[name]
    # No seed: the resumed run takes that of the checkpoint.
    whole = build_runner(config(tmp_path / 'whole', loop, workers))
    whole.train()
    np.random.seed(1)  # must not change anything
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


def build_loader(seed=0, workers=0, **options):
    cfg = dict(
        dataset=dict(type='Noise'),
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return ToolRunner.build_dataloader({**cfg, **options}, seed)


def samples(loader):
    return torch.stack([sample for batch in loader for sample in batch])


def test_samples_depend_on_the_seed():
    options = dict(sampler=dict(type='DefaultSampler', shuffle=False))
    first, same, other = (
        samples(build_loader(seed, **options)) for seed in (1, 1, 2)
    )
    assert_close(first, same)
    assert not (first[:, :3] == other[:, :3]).any()
    assert_close(first[:, 3], other[:, 3])


def test_samples_do_not_depend_on_the_number_of_workers():
    expected = samples(build_loader())
    for workers in (1, 2):
        assert_close(samples(build_loader(workers=workers)), expected)


def test_samples_differ_between_epochs():
    loader = build_loader(sampler=dict(type='DefaultSampler', shuffle=False))
    first = samples(loader)
    loader.sampler.set_epoch(1)
    second = samples(loader)
    assert not (first[:, :3] == second[:, :3]).any()
    assert_close(first[:, 3], second[:, 3])


@pytest.mark.parametrize('shuffle', [False, True])
def test_order_is_that_of_the_sampler(shuffle):
    loader = build_loader(
        sampler=dict(type='DefaultSampler', shuffle=shuffle), seed=3
    )
    stock = DefaultSampler(Noise(), shuffle, seed=3)
    assert len(loader) == 3
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        stock.set_epoch(epoch)
        assert samples(loader)[:, 3].tolist() == list(stock)


def test_every_draw_of_a_repeated_sample_is_seeded_anew():
    import_toolbox('mmpretrain')
    sampler = dict(type='mmpretrain.RepeatAugSampler', num_repeats=3)
    drawn = samples(build_loader(sampler=sampler))
    assert len(drawn[:, 3].unique()) < len(drawn)
    assert len(drawn[:, 0].unique()) == len(drawn)
    assert_close(samples(build_loader(sampler=sampler)), drawn)


def test_batch_samplers_look_samples_up():
    """MMDetection's batch sampler reads the size of each image by index."""
    import_toolbox('mmdet')
    loader = build_loader(
        batch_sampler=dict(type='mmdet.AspectRatioBatchSampler')
    )
    batches = [[int(s[3]) for s in batch] for batch in loader]
    assert sorted(sum(batches, [])) == list(range(6))
    full = [batch for batch in batches if len(batch) == 2]
    assert [first % 2 for first, _ in full[:2]] == [
        second % 2 for _, second in full[:2]
    ]


def test_video_sampler_is_not_wrapped():
    """MMDetection's hooks and batch samplers test for its class."""
    import_toolbox('mmdet')
    from mmdet.datasets.base_video_dataset import BaseVideoDataset
    from mmdet.datasets.samplers import TrackImgSampler

    class Videos(BaseVideoDataset):
        def __init__(self):
            self.test_mode = True

        def __len__(self):
            return 2

        def get_len_per_video(self, index):
            return 3

    sampler = build_positioned_sampler(
        SeededDataset(Videos(), 0), 0, dict(type='mmdet.TrackImgSampler')
    )
    assert isinstance(sampler, TrackImgSampler)


def test_hooks_exchange_the_pipeline(tmp_path):
    """The workers of a loader that are kept between epochs, too, get it."""
    import_toolbox('mmdet')
    switch = dict(
        type='mmdet.PipelineSwitchHook',
        switch_epoch=1,
        switch_pipeline=[dict(type='SwitchedPipeline')],
    )
    cfg = config(tmp_path, LOOPS['epochs'], 1, custom_hooks=[switch])
    runner = build_runner(cfg)
    runner.train()
    dataset = runner.train_dataloader.dataset
    assert dataset.pipeline is dataset.wrapped.pipeline
    assert dataset.pipeline is not dataset.wrapped.add_noise
    first, later = runner.model.inputs[:3], runner.model.inputs[3:]
    assert all(x.max() < 6 for x in first)
    assert all(x.min() == 9 for x in later)


def test_data_set_can_be_pickled():
    """Platforms that spawn their workers send it to them by pickle."""
    dataset = build_loader().dataset
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.metainfo == dataset.metainfo == {}
    assert len(copy) == 6
    assert not hasattr(copy, 'no_such_attribute')


def test_data_set_given_as_an_object_is_seeded():
    expected = samples(build_loader())
    assert_close(samples(build_loader(dataset=Noise())), expected)


def test_every_generator_is_seeded():
    drawn = []
    for key in ((0, 1), (0, 1), (1, 0)):
        seed_by(*key)
        torch_number = torch.rand(()).item()
        drawn.append((random.random(), np.random.rand(), torch_number))
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def losses(work_dir):
    """The logged losses of each iteration."""
    found = {}
    for path in Path(work_dir).glob('*/vis_data/scalars.json'):
        for line in path.read_text().splitlines():
            logged = json.loads(line)
            values = {k: v for k, v in logged.items() if 'loss' in k}
            if values:  # not a validation
                found[logged['step']] = values
    return found


# For each task: a config, the checkpoints of half a run and of a whole run,
# and options that make it short.
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
def test_resumed_task_has_the_losses_of_an_unstopped_task(
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
    # The work dir of a run that stopped after its first checkpoint.
    half, end = checkpoints
    Path('rest').mkdir()
    shutil.copy(f'whole/{half}', 'rest')
    Path('rest/last_checkpoint').write_text(f'rest/{half}')
    seed_by(7)  # must not change anything
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
