"""What a log shows of the results of a validation."""

import logging
from types import SimpleNamespace

import pytest

from mmefficientmod.engine.console import drop_noise
from mmefficientmod.engine.hooks import NoObjectsHook

TABLE = """
+-------+------+------+
| Class | IoU  | Acc  |
+-------+------+------+
| sky   | 12.5 | 20.0 |
| sea   | nan  | nan  |
| road  | 0.0  | nan  |
| sand dune | nan | nan |
+-------+------+------+"""


@pytest.fixture
def logger():
    logger = logging.Logger('test')
    drop_noise(logger)
    shown = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    logger.addHandler(handler)
    logger.shown = shown
    return logger


def test_classes_without_a_row_are_named(logger):
    logger.info(TABLE)
    table, _, sentence = logger.shown[0].rpartition('+\n')
    assert '| sky ' in table
    assert '| road ' in table  # predicted, and not in the ground truth
    assert 'sea' not in table
    assert sentence.startswith('2 classes are neither')
    assert sentence.endswith('sea, sand dune')


def test_table_of_full_rows_stays_as_it_is(logger):
    table = '\n'.join(x for x in TABLE.splitlines() if 'nan' not in x)
    logger.info(table)
    assert logger.shown == [table]


def test_metrics_of_minus_one_are_explained(logger):
    metrics = {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_l': -1.0}
    for method in ('after_val_epoch', 'after_test_epoch'):
        getattr(NoObjectsHook(), method)(
            SimpleNamespace(logger=logger), metrics=metrics
        )
    assert len(logger.shown) == 2
    assert 'annotations: coco/bbox_mAP_l. The' in logger.shown[0]
    NoObjectsHook().after_val_epoch(SimpleNamespace(logger=logger), {'a': 0})
    assert len(logger.shown) == 2
