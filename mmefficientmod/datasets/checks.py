"""Folders and files that a config names for its data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmefficientmod.config.nodes import type_name
from mmefficientmod.findings import Findings


class DataError(RuntimeError):
    """A file of a data set is missing, cannot be loaded or has bad labels."""


def check_paths(dataset: Mapping[str, Any], owner: str) -> Findings:
    """Check that the folders and files of one data set exist.

    Args:
        dataset: The dict of the data set.
        owner: Its name in messages, see :func:`owner_of`.
    """
    findings = Findings()
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = {'img_path': prefixes}
    if not prefixes and type_name(dataset) == 'ImageNet':
        prefixes = {'img_path': dataset.get('split')}
    names = [*prefixes.values(), dataset.get('ann_file')]
    names = [n for n in names if isinstance(n, str) and n]
    if '://' in root or not names:
        # On a server, or a data set that downloads its files.
        return findings
    for path in [root, *(Path(root, n) for n in names)]:
        if path and not Path(path).exists():
            findings.errors.append(
                f'{owner}: {path} does not exist. Put the data set there, '
                'name its folder with `--cfg-options data_root=...`, or use '
                'generated data with `--mini`'
            )
            if path == root:
                return findings
    images = prefixes.get('img_path') or prefixes.get('img')
    folder = Path(root, images) if images else None
    if folder and folder.is_dir() and not any(folder.iterdir()):
        findings.errors.append(f'{owner}: {folder} is empty')
    return findings


def owner_of(dataset: Mapping[str, Any], loader: str) -> str:
    """Name of a data set in messages.

    Args:
        dataset: The dict of the data set.
        loader: The data loader that it belongs to.
    """
    return f'{type_name(dataset)} of {loader}'


def join_root(dataset: Mapping[str, Any], path: str) -> str:
    """A path of a data set, below its ``data_root`` if it is relative.

    Args:
        dataset: The dict of the data set.
        path: The path, as the config names it.
    """
    root = dataset.get('data_root') or ''
    return str(Path(root, path)) if '://' not in root else f'{root}/{path}'
