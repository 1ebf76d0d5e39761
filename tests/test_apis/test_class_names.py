"""Where names and colours of the classes come from."""

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmefficientmod.apis.class_names import (
    count_classes,
    dataset_meta,
    find_classes,
)
from mmefficientmod.config.toolbox import import_toolbox

OWN = dict(classes=('cat', 'dog'), palette=[(1, 2, 3), (4, 5, 6)])
OTHER = dict(classes=('sky', 'sea'), palette=[(7, 8, 9), (0, 0, 0)])


@pytest.fixture(scope='module', autouse=True)
def mmdet():
    import_toolbox('mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def config(loader='test_dataloader', **dataset):
    dataset.setdefault('type', 'CocoDataset')
    # Inside a wrapper.
    wrapped = dict(type='ConcatDataset', datasets=[dataset])
    return Config({loader: dict(dataset=wrapped)})


@pytest.mark.parametrize(
    ('meta', 'metainfo', 'number', 'names', 'first_colour'),
    [
        (OTHER, OWN, 2, ('sky', 'sea'), (7, 8, 9)),
        ({}, OWN, 2, ('cat', 'dog'), (1, 2, 3)),
        # The colours of the config, if its names are those of the checkpoint.
        (dict(classes=['cat', 'dog']), OWN, 2, ('cat', 'dog'), (1, 2, 3)),
        (dict(classes=['a', 'b']), OWN, 2, ('a', 'b'), None),
        # Fewer names than classes, and more, as of a proposal network.
        (OWN, {}, 3, ('cat', 'dog', 'class 2'), None),
        (OTHER, {}, 1, ('class 0',), None),
        ({}, {}, 2, ('class 0', 'class 1'), None),
        (OWN, {}, None, ('cat', 'dog'), (1, 2, 3)),
        ({}, {}, None, (), None),
        (dict(palette='random', classes='cat'), {}, 1, ('class 0',), None),
    ],
)
def test_names_come_from_the_checkpoint_or_the_config(
    meta, metainfo, number, names, first_colour
):
    for loader in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        found = find_classes(config(loader, metainfo=metainfo), meta, number)
        assert found.names == names
        assert len(found.palette) == len(names) == len({*found.palette})
        if first_colour:
            assert found.palette[0] == first_colour
        assert bool(found.remark) == any('class' in name for name in names)


def test_names_of_the_class_are_taken_only_if_their_number_fits():
    found = find_classes(config(), {}, 80)
    assert found.names[:2] == ('person', 'bicycle')
    assert found.palette[0] == (220, 20, 60)
    assert find_classes(config(), {}, 79).names[0] == 'class 0'
    from mmdet.datasets import CocoDataset

    found = find_classes(config(type=CocoDataset), {}, 80)
    assert found.names[0] == 'person'


def test_names_may_be_the_lines_of_a_file(tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('cat\ndog\n')
    found = find_classes(config(metainfo=dict(classes=str(file))), {}, 2)
    assert found.names == ('cat', 'dog')


def test_meta_of_any_version_is_read():
    assert dataset_meta({'meta': {'dataset_meta': {'CLASSES': ['a']}}}) == {
        'classes': ['a']
    }
    assert dataset_meta({'meta': {'CLASSES': ['a'], 'PALETTE': [[1, 2, 3]]}})
    for content in ({}, {'meta': None}, {'meta': {'dataset_meta': 5}}, [1]):
        assert dataset_meta(content) == {}


def test_number_of_classes_is_that_of_the_head():
    def module(**parts):
        made = nn.Module()
        for name, part in parts.items():
            setattr(made, name, part)
        return made

    boxes = module(num_classes=3)
    proposals = module(num_classes=1)
    cascade = module(bbox_head=nn.ModuleList([module(num_classes=9), boxes]))
    for model, number in (
        (module(rpn_head=proposals, roi_head=cascade), 3),
        (module(detector=module(bbox_head=boxes)), 3),
        (module(rpn_head=proposals), 1),
        (module(head=nn.Sequential(nn.Linear(2, 5))), 5),
        (module(), None),
    ):
        assert count_classes(model) == number
