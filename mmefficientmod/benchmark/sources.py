"""Code of models: importing a file by its path, hashes of what is measured."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import mmefficientmod
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.swap.probe import class_of

# These modules only show results: they are left out of the package's hash, as
# a change in them leaves results valid.
SHOWING = ('figures.py', 'report.py', 'tables.py', 'terminal.py')


def import_file(path: str) -> ModuleType:
    """Import a Python file that belongs to no package.

    Its module stays in ``sys.modules``, under a name made of a hash of its
    path: ``inspect``, pickle and timm's registry look it up there.

    Args:
        path: The file. It is imported anew in each call.

    Raises:
        ConfigError: If the file does not exist, or raises an error.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f'{path} does not exist')
    name = f'benchmarked_{short_hash(str(file))}'
    loader = SourceFileLoader(name, str(file))
    module = importlib.util.module_from_spec(
        ModuleSpec(name, loader, origin=str(file))
    )
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        with warnings.catch_warnings():
            # The authors' file imports timm by names that are deprecated.
            warnings.simplefilter('ignore')
            loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f'{path} cannot be imported: {type(error).__name__}: {error}'
        ) from error
    return module


def backbone_hash(backbone: Mapping[str, Any], config: str | None) -> str:
    """Hash a backbone and the code that defines it.

    Args:
        backbone: The dict of the backbone. Hashed are the dict, the files of
            its class and of the classes that this one is derived from, and
            the file under the key ``path``, if there is one.
        config: A config that the backbone goes into, hashed as well; None
            for a backbone alone.

    Returns:
        12 hexadecimal digits, which also depend on the code of this package.
    """
    classes = class_of(backbone).__mro__[:-1]
    paths = [inspect.getfile(kind) for kind in classes]
    if 'path' in backbone:
        paths.append(backbone['path'])
    texts = [
        Path(path).read_text()
        for path in dict.fromkeys(paths)
        if Path(path).is_file()
    ]
    if config:
        texts.append(_config_text(config))
    texts.append(package_hash())
    return short_hash('\n'.join([str(dict(backbone)), *texts]))


def config_hash(config: str) -> str:
    """Hash a whole config, and the code of this package."""
    return short_hash(_config_text(config) + package_hash())


def _config_text(config: str) -> str:
    """All settings of a config.

    Not by ``Config.pretty_text``, which takes seconds to format them.
    """
    return str(load_config(config).to_dict())


@functools.cache
def package_hash() -> str:
    """Hash the Python files of this package, without those in SHOWING.

    Results are kept with this hash, since this package runs all models and
    defines some of them: a change in its code makes kept results invalid.
    """
    root = Path(mmefficientmod.__file__).parent
    paths = sorted(
        path
        for path in root.rglob('*.py')
        if '.mim' not in path.parts and path.name not in SHOWING
    )
    return short_hash('\n'.join(path.read_text() for path in paths))


def short_hash(text: str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
