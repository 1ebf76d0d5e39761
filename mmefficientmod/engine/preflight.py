"""What would fail in a run, found before its first iteration.

The data sets and metrics of a run are built here and looked at; the runner
takes them, so that no annotation file is read twice.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger, print_log
from mmengine.registry import DATASETS, EVALUATOR
from mmengine.runner import FlexibleRunner, Runner

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.checks import (
    check_batches,
    check_settings,
    drop_half_loops,
)
from mmefficientmod.config.class_checks import check_classes, metainfo
from mmefficientmod.config.nodes import (
    LOADERS,
    ConfigError,
    dataset_dicts,
    type_name,
    walk,
)
from mmefficientmod.config.toolbox import default_scope
from mmefficientmod.datasets import DataError, name_file_on_error
from mmefficientmod.datasets.annotation_files import FILES
from mmefficientmod.datasets.built import check_built, explain_empty
from mmefficientmod.datasets.checks import (
    check_paths,
    join_root,
    owner_of,
)
from mmefficientmod.datasets.coco import without_gc
from mmefficientmod.datasets.coco_datasets import (
    check_coco_dataset,
    check_left_out,
    needs_masks,
    reads_coco,
)
from mmefficientmod.datasets.folders import check_imagenet_folders
from mmefficientmod.datasets.lists import check_range, read_labels_of_list
from mmefficientmod.datasets.samples import innermost
from mmefficientmod.engine.console import drop_noise
from mmefficientmod.engine.runner import RunnerMixin
from mmefficientmod.engine.seeding import BuiltDataset
from mmefficientmod.findings import Findings
from mmefficientmod.messages import list_some, shorten

TRAIN = 'train_dataloader'
# Errors that say what a user can correct.
USER_ERRORS = (CheckpointError, ConfigError, DataError)
# The data loaders of each kind of run, and the evaluator of each loader.
MODES = dict(
    train=('train_dataloader', 'val_dataloader'),
    test=('test_dataloader',),
    all=LOADERS,
)
EVALUATORS = dict(
    val_dataloader='val_evaluator', test_dataloader='test_evaluator'
)


class Preflight:
    """The checks of a run.

    Args:
        cfg: The config; data sets and metrics are built from it. Loops that
            are half there and not needed are taken out of it.
        mode: ``'train'``, ``'test'``, or ``'all'`` for the data of both
            without the other settings.
    """

    def __init__(self, cfg: Config, mode: str) -> None:
        self.cfg = cfg
        self.mode = mode
        self.left_out = drop_half_loops(cfg, mode) if mode != 'all' else []
        self.loaders = [name for name in MODES[mode] if cfg.get(name)]
        self.findings = Findings()
        self.files = FILES
        self.datasets: dict[str, Any] = {}
        self.evaluators: dict[str, Evaluator] = {}

    def run(self) -> None:
        """Build and look at everything.

        Raises:
            DataError: If anything is wrong; the message lists all of it.
        """
        self.look()
        self.files.forget()
        if self.findings.errors:
            raise DataError(self.findings.message())

    def look(self) -> None:
        """Build and look at everything, and keep what is wrong."""
        drop_noise(MMLogger.get_current_instance())
        if self.mode != 'all':
            self.findings.add(check_settings(self.cfg, self.mode))
        with default_scope(self.cfg), self.files.shared(), without_gc():
            if self.mode == 'all':
                check_classes(self.cfg, self.findings)
            for loader in self.loaders:
                with self._collect(loader):
                    self._check_loader(loader)
            self._compare_folders()
            for loader in self.loaders:
                name = EVALUATORS.get(loader)
                if name and self.cfg.get(name):
                    with self._collect(name):
                        self._check_evaluator(loader, name)

    def log(self) -> None:
        """Log what the run is right with, and a user should know."""
        for line in self.left_out:
            print_log(line, 'current')
        for warning in self.findings.warnings:
            print_log(warning, 'current', logging.WARNING)

    def hand_over(self, runner: Runner | FlexibleRunner) -> None:
        """Give what was built to the runner.

        Args:
            runner: The runner of the same config, before it runs.
        """
        if not isinstance(runner, RunnerMixin):
            return  # a runner of the user's own builds them itself
        for loader, dataset in self.datasets.items():
            cfg = dict(getattr(runner, f'_{loader}'))
            cfg['dataset'] = BuiltDataset(dataset)
            setattr(runner, f'_{loader}', cfg)
        for name, evaluator in self.evaluators.items():
            setattr(runner, f'_{name}', evaluator)

    @contextmanager
    def _collect(self, part: str) -> Iterator[None]:
        """Add an error in a part of the config to the findings."""
        try:
            yield
        except USER_ERRORS as error:
            self.findings.add(Findings([str(error)]))
        except Exception as error:
            cause = f'{type(error).__name__}: {shorten(str(error))}'
            self.findings.add(Findings([f'{part} cannot be built: {cause}']))

    def _check_loader(self, loader: str) -> None:
        found = Findings()
        for dataset in dataset_dicts(self.cfg, loader):
            found.add(self._check_files(dataset, loader))
        self.findings.add(found)
        if found.errors:
            return  # it cannot be built, or not be as it should
        cfg = copy.deepcopy(self.cfg[loader]['dataset'])
        try:
            dataset = DATASETS.build(cfg)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
        except ValueError:
            # MMEngine cannot join the entries of a data set that has none.
            for inner in dataset_dicts(self.cfg, loader):
                empty = explain_empty(inner, owner_of(inner, loader))
                found.errors += [empty] if empty else []
            if not found.errors:
                raise
            self.findings.add(found)
            return
        name_file_on_error(dataset)
        self.findings.add(check_built(dataset, loader, self.mode != 'all'))
        for part in innermost(dataset):
            owner = f'{type(part).__name__} of {loader}'
            self.findings.add(check_left_out(part, self.files, owner))
        self.findings.errors += check_batches(
            self.cfg[loader], dataset, loader
        )
        self.datasets[loader] = dataset

    def _compare_folders(self) -> None:
        """Class folders of the data sets, whose order numbers the labels."""
        found = {
            loader: list(part.folder_to_idx)
            for loader, dataset in self.datasets.items()
            for part in innermost(dataset)
            if getattr(part, 'folder_to_idx', None)
        }
        for loader, names in list(found.items())[1:]:
            first, expected = next(iter(found.items()))
            other = sorted({*names} ^ {*expected})
            if other:
                self.findings.errors.append(
                    f'{loader} has other class folders than {first} '
                    f'({list_some(other)}), and the folders number the '
                    'labels; give both the same folders'
                )

    def _check_files(self, dataset: ConfigDict, loader: str) -> Findings:
        """Look at the files of a data set before it is built."""
        owner = owner_of(dataset, loader)
        found = check_paths(dataset, owner)
        if found.errors:
            return found
        if reads_coco(dataset):
            trains = loader == TRAIN
            found.add(check_coco_dataset(dataset, self.files, owner, trains))
        elif type_name(dataset) == 'ImageNet':
            bad = check_imagenet_folders(dataset, owner)
            found.errors += [bad] if bad else []
        elif self._is_labelled_list(dataset):
            path = join_root(dataset, dataset['ann_file'])
            labels = read_labels_of_list(path)
            count, counted = _num_classes(self.cfg, dataset)
            if count:
                bad = check_range(labels, count, path, counted)
                found.errors += [bad] if bad else []
        return found

    def _is_labelled_list(self, dataset: Mapping[str, Any]) -> bool:
        path = dataset.get('ann_file') or ''
        return (
            self.cfg.get('default_scope') == 'mmpretrain'
            and type_name(dataset) == 'CustomDataset'
            and dataset.get('with_label', True)
            and path.endswith('.txt')
            and Path(join_root(dataset, path)).is_file()
        )

    def _check_evaluator(self, loader: str, name: str) -> None:
        found = Findings()
        for metric in walk(self.cfg[name]):
            found.add(self._check_metric(metric, loader, name))
        self.findings.add(found)
        if found.errors or loader not in self.datasets:
            return
        evaluator = self.cfg[name]
        metrics: Any = copy.deepcopy(evaluator)
        if 'metrics' in metrics:
            metrics.setdefault('type', 'Evaluator')
            self.evaluators[name] = EVALUATOR.build(metrics)
        else:
            self.evaluators[name] = Evaluator(metrics)

    def _check_metric(
        self, metric: ConfigDict, loader: str, name: str
    ) -> Findings:
        """Compare the annotation file of a metric with the data set's."""
        owner = f'{type_name(metric)} of {name}'
        found = Findings()
        if not metric.get('format_only'):
            for dataset in dataset_dicts(self.cfg, loader):
                missing = _missing_labels(type_name(metric), dataset)
                if missing:
                    found.errors.append(
                        f'{owner}: {owner_of(dataset, loader)} {missing}'
                    )
        if (
            type_name(metric) == 'CocoMetric'
            and 'segm' in (metric.get('metric') or ())
            and TRAIN in self.loaders
            and not any(map(needs_masks, dataset_dicts(self.cfg, TRAIN)))
        ):
            found.errors.append(
                f"CocoMetric of {name}: metric='segm' needs predicted masks, "
                'and the pipeline of train_dataloader loads none to learn '
                f"from; set {name}.metric='bbox'"
            )
        path = metric.get('ann_file')
        if not isinstance(path, str) or '://' in path:
            return found
        own = [
            join_root(dataset, dataset['ann_file'])
            for dataset in dataset_dicts(self.cfg, loader)
            if dataset.get('ann_file')
        ]
        remedy = (
            f'; the data set of {loader} reads {own[0]}, so set '
            f'{name}.ann_file to it'
            if own
            else ''
        )
        if not Path(path).is_file():
            found.errors.append(f'{owner}: {path} does not exist{remedy}')
        elif type_name(metric) == 'CocoMetric' and len(own) == 1:
            self._compare_files(metric, owner, own[0], remedy, found)
        return found

    def _compare_files(
        self,
        metric: ConfigDict,
        owner: str,
        own: str,
        remedy: str,
        found: Findings,
    ) -> None:
        path = metric['ann_file']
        content = self.files.content(path)
        if Path(path).resolve() != Path(own).resolve():
            same = self.files.content(own)
            if not _images(same) <= _images(content):
                found.errors.append(
                    f'{owner}: {path} does not have all images of {own}'
                    f'{remedy}'
                )
            elif _names(content) != _names(same):
                found.errors.append(
                    f'{owner}: {path} has other categories than {own}, or in '
                    'another order, in which the metric numbers the labels'
                    f'{remedy}'
                )
        if not content.get('annotations') and not metric.get('format_only'):
            found.errors.append(
                f'{owner}: {path} has no annotations to compare predictions '
                'with; to write predictions only, set format_only=True and '
                "outfile_prefix='results'"
            )


def _missing_labels(metric: str, dataset: ConfigDict) -> str | None:
    """Why a metric of segmentation or classification cannot be computed.

    Args:
        metric: Name of its type.
        dataset: The dict of the data set.
    """
    if metric.endswith('IoUMetric'):
        steps = walk(dataset.get('pipeline'))
        loads = any(type_name(x).startswith('LoadAnnot') for x in steps)
        prefix = dataset.get('data_prefix')
        if not loads or (
            isinstance(prefix, Mapping)
            and 'img_path' in prefix
            and not prefix.get('seg_map_path')
        ):
            return (
                'has no masks to compare predictions with; to write '
                "predictions only, set format_only=True and output_dir='...'"
            )
    if metric in ('Accuracy', 'SingleLabelMetric', 'ConfusionMatrix') and (
        not dataset.get('with_label', True)
        or (type_name(dataset), dataset.get('split')) == ('ImageNet', 'test')
    ):
        return (
            'has no labels to compare predictions with; use tools/predict.py '
            'for images without labels'
        )
    return None


def _images(content: Mapping[str, Any]) -> set[tuple[Any, str]]:
    """Ids and names of the images of an annotation file, without folders."""
    return {
        (
            x.get('id'),
            str(x.get('file_name')).replace('\\', '/').split('/')[-1],
        )
        for x in content['images']
    }


def _names(content: Mapping[str, Any]) -> list[Any]:
    return [category.get('name') for category in content['categories']]


def _num_classes(cfg: Config, dataset: ConfigDict) -> tuple[int | None, str]:
    """The number of classes of a classifier, and what has it."""
    head = (cfg.get('model') or {}).get('head') or {}
    if isinstance(head.get('num_classes'), int):
        return head['num_classes'], type_name(head)
    names = metainfo(dataset).get('classes') or ()
    return len(names) or None, 'the data set'
