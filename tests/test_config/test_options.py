"""``--cfg-options`` with a key or a value that does not fit the config."""

import argparse

import pytest
from mmengine.config import Config

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import OptionsAction, apply_options


@pytest.fixture
def cfg():
    return Config(
        dict(
            model=dict(type='Net', neck=None, norm=[dict(type='BN')]),
            train_dataloader=dict(
                batch_size=2,
                dataset=dict(metainfo=dict(classes=('a', 'b')), ann_file='x'),
            ),
            optim_wrapper=dict(loss_scale=512.0, flag=True),
            crop_size=(8, 8),
        )
    )


def parse(*texts):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
    return parser.parse_args(['--cfg-options', *texts]).cfg_options


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('model=abc', r'model is a dict; name a key in it, such as'),
        ('model.norm=BN', r'list of dicts; .* such as model\.norm\.0\.type'),
        ('model.norm.1.type=GN', r"model\.norm has 1 entries.*'1' is none"),
        ('model.norm.first.type=GN', r"'first' is none of them"),
        ('model.type.name=GN', r"model\.type is 'Net' and has no keys"),
        ('model.neck.type=FPN', r'model\.neck is None and has no keys'),
        ('train_dataloader.batch_size=two', r'a number is needed, as 2 is'),
        ('train_dataloader.dataset.ann_file=2017', r'a text .* \./2017'),
        (
            'train_dataloader.dataset.metainfo.classes=cat',
            r'are a list, as in .*classes=\[cat\]',
        ),
    ],
)
def test_option_that_does_not_fit_is_refused(cfg, option, said):
    before = cfg.to_dict()
    with pytest.raises(ConfigError, match=said) as error:
        apply_options(cfg, parse(option))
    assert str(error.value).startswith(f'--cfg-options {option.split("=")[0]}')
    assert cfg.to_dict() == before


def test_options_that_contradict_each_other_are_refused(cfg):
    with pytest.raises(ConfigError, match='does not fit'):
        apply_options(cfg, parse('model.new=1', 'model.new.part=2'))


def test_options_that_fit_are_applied(cfg):
    apply_options(
        cfg,
        parse(
            'model.norm.0.type=GN', 'crop_size=4',
            'optim_wrapper.loss_scale=dynamic', 'optim_wrapper.flag=0',
            'model.new=[1,2]', 'train_dataloader.batch_size=4',
        ),
    )  # fmt: skip
    assert cfg.model.norm == [dict(type='GN')]
    assert cfg.crop_size == (4, 4)
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.model.new == [1, 2]
    assert cfg.train_dataloader.batch_size == 4


@pytest.mark.parametrize(
    ('text', 'said'),
    [('lr', 'an option is KEY=VALUE'), ('a=[1,(2]', 'Imbalanced brackets')],
)
def test_option_that_cannot_be_read_ends_the_tool(text, said, capsys):
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parse(text)
    assert said in capsys.readouterr().err
