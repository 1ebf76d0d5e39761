"""Errors that end in one sentence in place of a traceback."""

import re

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmefficientmod.cli.errors import user_message


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        (
            dict(optimizer=dict(type='AdamWw', lr=1.0)),
            'AdamWw of optim_wrapper cannot be built: no such type is',
        ),
        (dict(optimizer=dict(type='AdamW', lrr=1)), "argument 'lrr'"),
        (
            dict(optimizer=dict(type='AdamW', lr=-1)),
            'AdamW of optim_wrapper .*Invalid learning rate',
        ),
        (dict(optimizer=dict(lr=1)), "optim_wrapper .*KeyError: 'type'"),
        (dict(type='NoWrapper'), 'NoWrapper is not in the'),
        (dict(constructor='NoConstructor'), 'NoConstructor is not in the'),
        (
            dict(paramwise_cfg=dict(custom_keys=3)),
            'custom_keys must be a dict',
        ),
    ],
)
def test_mistake_in_the_optimizer_is_one_sentence(changes, said):
    cfg = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0))
    with pytest.raises((KeyError, TypeError, ValueError)) as error:
        build_optim_wrapper(nn.Linear(2, 2), cfg | changes)
    message = user_message(error.value)
    assert '\n' not in message
    assert re.search(said, message), message


def test_error_of_a_training_step_is_no_mistake_of_the_optimizer():
    cfg = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0))
    optim = build_optim_wrapper(nn.Linear(2, 2), cfg)
    with pytest.raises(TypeError) as error:
        optim.update_params('no loss')
    assert user_message(error.value) is None
