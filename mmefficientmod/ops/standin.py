"""The importer of ``mmcv._ext`` where mmcv has no compiled ops."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

_EXT = 'mmcv._ext'


class OpNotServedError(NotImplementedError):
    """An mmcv op was called that only a compiled mmcv has."""


class StandinLoader(importlib.abc.Loader):
    """Fills the module ``mmcv._ext`` with the kernels of this package."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Add the kernels to ``module``, and an error for any other op."""
        # Imported here, since torch and torchvision are not needed before.
        from . import kernels

        for name in kernels.__all__:
            setattr(module, name, getattr(kernels, name))
        # mmcv.ops looks up every op while it is imported, so an op that is
        # missing must not fail before it is called.
        vars(module)['__getattr__'] = _unserved


class StandinFinder(importlib.abc.MetaPathFinder):
    """Finder of the module ``mmcv._ext`` only."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the spec of the stand-in if ``fullname`` is ``mmcv._ext``."""
        if fullname != _EXT:
            return None
        return importlib.util.spec_from_loader(
            fullname, StandinLoader(), origin='mmefficientmod.ops.kernels'
        )


def install() -> None:
    """Make ``mmcv._ext`` importable; a second call changes nothing.

    Python asks this finder last, so compiled ops are used if mmcv has them.
    """
    if not any(isinstance(f, StandinFinder) for f in sys.meta_path):
        sys.meta_path.append(StandinFinder())


def is_standin() -> bool:
    """Whether mmcv's ops are those of this package. Imports mmcv.

    Returns:
        False if mmcv has compiled ops, if mmcv is not installed, and before
        :func:`install`.
    """
    try:
        spec = importlib.util.find_spec(_EXT)
    except ModuleNotFoundError as error:
        if error.name == 'mmcv':
            return False
        raise  # a module that mmcv imports is missing
    return spec is not None and isinstance(spec.loader, StandinLoader)


def _unserved(name: str) -> Callable[..., NoReturn]:
    if name.startswith('_'):
        raise AttributeError(f'module {_EXT!r} has no attribute {name!r}')

    def op(*args: object, **kwargs: object) -> NoReturn:
        raise OpNotServedError(
            f'Only a compiled mmcv has the op {name!r}. To compile it, which '
            'takes a C++ compiler, run `MMCV_WITH_OPS=1 uv pip install '
            '--no-build-isolation --no-binary onedl-mmcv onedl-mmcv`; in the '
            'openmmlab stack, replace `mmcv-lite` by `mmcv` built from source.'
        )

    op.__name__ = op.__qualname__ = name
    return op
