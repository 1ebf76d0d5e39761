"""Values in the text of a config, which is not run."""

import pytest
from mmengine.config import Config

from mmefficientmod.config.files import load_config
from mmefficientmod.config.literals import read_literals


@pytest.mark.parametrize(
    'name',
    [
        'seg/fpn_efficientmod_s_ade20k.py',
        'det/mask_rcnn_efficientmod_s_fpn_1x_coco.py',
        'cls/efficientmod_s_distill_in1k.py',
    ],
)
def test_text_of_a_config_gives_its_values(name):
    cfg = load_config(f'mmefficientmod::{name}')
    text = cfg.pretty_text
    assert read_literals(text) == Config.fromstring(text, '.py').to_dict()


def test_text_is_not_run(tmp_path):
    trap = tmp_path / 'trap'
    values = read_literals('a = open("trap", "w")\nb = dict(c=[len(a), -1])')
    assert values == dict(a=None, b=dict(c=[None, -1]))
    for code in (
        f'import os\nos.mkdir({str(trap)!r})',
        f'a = __import__("os").mkdir({str(trap)!r})',
        'a = f"{print(1)}"',
    ):
        with pytest.raises(ValueError, match='no config'):
            read_literals(code)
    assert not trap.exists()


@pytest.mark.parametrize(
    'text',
    [
        'a = ',
        'a = \0',
        'a = ' + '(' * 200 + ')' * 200,
        'a = ' + '(' * 10**5,
        'a = ' + '-' * 10**5 + '1',
        'a = b' + '.b' * 10**5,
        'a = b' + '()' * 10**5,
        'a = b' + '[0]' * 10**5,
        'a = 1' + ' + 1' * 10**5,
        'a = ' + 'not ' * 10**5 + '1',
        '#' * 3_000_000,
    ],
    ids=range(11),
)
def test_text_that_is_no_config_is_refused(text):
    with pytest.raises(ValueError, match='no config|for a config'):
        read_literals(text)
