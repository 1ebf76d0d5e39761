"""Code of models: files that are imported, and hashes of what was measured."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import mmefficientmod
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.swap.probe import class_of


def import_file(path: str) -> ModuleType:
    """Import a file that is in no package.

    Raises:
        ConfigError: If it is not there, or fails.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f'{path} does not exist')
    name = f'candidate_{short_hash(str(file))}'
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where timm's registry and pickle look
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the authors' uses old names
            spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f'{path} cannot be imported: {type(error).__name__}: {error}'
        ) from error
    return module


def source_hash(backbone: Mapping[str, Any], config: str | None) -> str:
    """Hash of the dict, the files with the backbone's code, the config."""
    kind = class_of(backbone)
    paths = [inspect.getfile(base) for base in kind.__mro__[:-1]]
    if 'path' in backbone:
        paths.append(backbone['path'])
    texts = [
        Path(path).read_text()
        for path in dict.fromkeys(paths)
        if Path(path).is_file()
    ]
    if config:
        texts.append(config_text(config))
    texts.append(_own_code())
    return short_hash('\n'.join([str(dict(backbone)), *texts]))


def config_text(config: str) -> str:
    """All that a config says; to format it well would take seconds."""
    return str(load_config(config).to_dict())


# Files that only show results: a change in them leaves results valid.
SHOWING = ('figures.py', 'report.py', 'tables.py')


@functools.cache
def _own_code() -> str:
    """Hash of this package, which runs all models and is some of them.

    What only shows results is left out.
    """
    root = Path(mmefficientmod.__file__).parent
    paths = sorted(
        path
        for path in root.rglob('*.py')
        if '.mim' not in path.parts and path.name not in SHOWING
    )
    return short_hash('\n'.join(path.read_text() for path in paths))


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
