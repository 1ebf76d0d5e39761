"""Accumulated gradients give the steps of the whole batch."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from torch import nn
from torch.testing import assert_close

from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.engine.runner import build_runner

IMAGES, COUNTS, MOMENTUM = 32, 4, 0.1


@MODELS.register_module()
class AccumulationToy(BaseModel):
    """A linear model of three inputs."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)
        nn.init.ones_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, inputs, targets, mode):
        return dict(loss=(self.line(inputs)[:, 0] - targets).square().mean())


@HOOKS.register_module()
class AccumulationRecordHook(Hook):
    """Records weights and learning rate at each step of the optimizer."""

    def before_train(self, runner):
        self.weights, self.rates = [], []
        runner.optim_wrapper.optimizer.register_step_post_hook(self._record)

    def _record(self, optimizer, args, kwargs):
        (weight, _) = optimizer.param_groups[0]['params']
        self.weights.append(weight.detach().clone())
        self.rates.append(optimizer.param_groups[0]['lr'])


@DATASETS.register_module()
class AccumulationPoints:
    """Random inputs, and a noisy linear function of them."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(IMAGES, 3, generator=generator)
        noise = torch.randn(IMAGES, generator=generator)
        self.targets = self.inputs.sum(1) * 5 + noise

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return dict(inputs=self.inputs[index], targets=self.targets[index])


def train(folder, batch_size, options=(), **others):
    """Train; return the recording hook, the averaged model and the runner."""
    cfg = Config(
        dict(
            model=dict(type='AccumulationToy'),
            work_dir=str(folder),
            train_dataloader=dict(
                batch_size=batch_size,
                dataset=dict(type='AccumulationPoints'),
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=3),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.2, momentum=0.9),
                clip_grad=dict(max_norm=1.0),
            ),
            auto_scale_lr=dict(enable=True, base_batch_size=16),
            custom_hooks=[
                dict(type='EMAHook', momentum=MOMENTUM),
                dict(type='AccumulationRecordHook'),
            ],
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            experiment_name=folder.name,
            **others,
        )
    )
    apply_options(cfg, dict(options))
    runner = build_runner(cfg)
    runner.train()
    hooks = {type(hook).__name__: hook for hook in runner.hooks}
    return hooks['AccumulationRecordHook'], hooks['EMAHook'].ema_model, runner


@pytest.mark.parametrize('runner_type', ['Runner', 'FlexibleRunner'])
def test_accumulated_steps_equal_those_of_the_whole_batch(
    tmp_path, runner_type
):
    more = dict(runner_type=runner_type)
    whole, _, _ = train(tmp_path / 'whole', 8, **more)
    options = {'optim_wrapper.accumulative_counts': COUNTS}
    parts, average, runner = train(tmp_path / 'parts', 2, options, **more)
    assert runner.iter == 3 * IMAGES // 2
    assert len(parts.weights) == len(whole.weights) == 3 * IMAGES // 8
    # A step takes 8 images, half of those that the learning rate is for.
    assert parts.rates == whole.rates == [0.1] * len(whole.rates)
    assert_close(parts.weights, whole.weights)

    # The average starts from the first weights and is updated after each step
    # but the last: its update would come with the next iteration.
    expected = torch.ones(1, 3)
    for weight in parts.weights[:-1]:
        expected = torch.lerp(expected, weight, MOMENTUM)
    assert_close(average.module.line.weight, expected)


def test_warm_up_takes_as_many_steps_with_accumulation(tmp_path):
    def rates(folder, batch_size, options=()):
        schedule = [dict(type='LinearLR', start_factor=0.1, by_epoch=False)]
        schedule[0].update(begin=0, end=6)
        return train(folder, batch_size, options, param_scheduler=schedule)[
            0
        ].rates

    whole = rates(tmp_path / 'whole', 8)
    options = {'optim_wrapper.accumulative_counts': COUNTS}
    parts = rates(tmp_path / 'parts', 2, options)
    # MMEngine's schedulers advance with each iteration, so that the rate grows
    # within a step of the optimizer.
    slope = whole[1] - whole[0]
    late = [p - w for p, w in zip(parts, whole, strict=True)]
    assert min(late[:5]) > 0
    assert max(late) < slope
    assert parts[6:] == pytest.approx([0.1] * 6)
    assert whole[6:] == pytest.approx([0.1] * 6)


def test_hooks_and_schedules_that_count_iterations_follow_accumulation():
    counts = 'optim_wrapper.accumulative_counts'
    cfg = load_config('mmefficientmod::cls/efficientmod_s_in1k.py')
    schedule = [dict(s) for s in cfg.param_scheduler]
    apply_options(cfg, {counts: 8})
    assert cfg.param_scheduler == schedule  # counts epochs
    assert cfg.custom_hooks[0].interval == 8
    apply_options(cfg, {counts: 4})
    assert cfg.custom_hooks[0].interval == 4
    apply_options(cfg, {counts: 2, 'custom_hooks.0.interval': 3})
    assert cfg.custom_hooks[0].interval == 3

    detector = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    cfg = load_config(detector, {counts: 8})
    assert cfg.param_scheduler[0]['end'] == 4000
    assert cfg.param_scheduler[1]['milestones'] == [8, 11]
    cfg = load_config(detector, {counts: 8, 'param_scheduler.0.end': 600})
    assert cfg.param_scheduler[0]['end'] == 600


def test_warning_names_the_number_of_steps(capsys):
    segmentor = 'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py'
    counts = {'optim_wrapper.accumulative_counts': 8}
    cfg = load_config(segmentor, counts)
    assert cfg.train_cfg.max_iters == 40000
    printed = ''.join(capsys.readouterr())
    assert '40000 iterations are 5000 steps' in printed
    assert 'train_cfg.max_iters=320000 has as many steps' in printed
    cfg = load_config(segmentor, counts | {'train_cfg.max_iters': 320000})
    assert cfg.param_scheduler[0]['end'] == 8008
    assert 'steps' not in ''.join(capsys.readouterr())


@pytest.mark.parametrize('counts', [0, -1, 1.5, 'many'])
def test_invalid_number_of_iterations_is_refused(counts):
    cfg = load_config('mmefficientmod::cls/efficientmod_s_in1k.py')
    with pytest.raises(ConfigError, match='accumulative_counts=.* 1 or more'):
        apply_options(cfg, {'optim_wrapper.accumulative_counts': counts})
