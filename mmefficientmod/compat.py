"""The versions of PyTorch and the toolboxes that this package supports.

Two stacks provide the same modules (``mmengine``, ``mmcv``, ...) under
different distribution names: the maintained ``onedl-*`` forks and the
original OpenMMLab releases. Both install into the same folders, so an
environment may hold only one of them.

Accepted versions are written in the tables below and nowhere else:
``setup.py`` runs this file to make its extras from them. At its top the file
therefore imports only the standard library.
"""

from importlib import metadata

# Distribution -> version, or accepted versions; and module -> distributions.
Versions = dict[str, str]
Modules = dict[str, Versions]

# stack -> module -> {distribution that provides it: accepted versions}. Where
# several distributions provide a module, messages suggest the first.
#
# The range of a toolbox is the minor series that the locks in requirements/
# hold, since toolboxes break their interface between minor releases.
#
# PyTorch keeps its interface within a major version, so its range is wider
# than the versions that were tested: 2.11, 2.13 and 2.15 for onedl, and 2.1
# for openmmlab.
# - onedl: from 2.3, since onedl-mmsegmentation needs NumPy 2, which older
#   PyTorch does not support, and below 3.
# - openmmlab: from 2.1, the oldest version tested, to 2.5, since MMEngine
#   0.10.7 cannot load its own checkpoints with PyTorch 2.6.
PYTORCH: dict[str, Modules] = {
    'onedl': {
        'torch': {'torch': '>=2.3,<3'},
        'torchvision': {'torchvision': '>=0.18,<1'},
    },
    'openmmlab': {
        'torch': {'torch': '>=2.1,<2.6'},
        'torchvision': {'torchvision': '>=0.16,<0.21'},
    },
}
STACKS: dict[str, Modules] = {
    'onedl': {
        # 0.10.8 is the fork's first release; onedl-mmcv 2.3.0 needs NumPy 1.
        'mmengine': {'onedl-mmengine': '>=0.10.8,<0.11'},
        'mmcv': {'onedl-mmcv': '>=2.3.1,<2.4'},
        'mmdet': {'onedl-mmdetection': '>=3.5,<3.6'},
        'mmseg': {'onedl-mmsegmentation': '>=1.4,<1.5'},
        'mmpretrain': {'onedl-mmpretrain': '>=1.3,<1.4'},
    },
    'openmmlab': {
        'mmengine': {
            'mmengine': '>=0.10,<0.11',
            'mmengine-lite': '>=0.10,<0.11',
        },
        # mmdet 3.3 and mmseg 1.2 refuse mmcv 2.2. The lite build is suggested
        # because the full one must be compiled.
        'mmcv': {'mmcv-lite': '>=2.1,<2.2', 'mmcv': '>=2.1,<2.2'},
        'mmdet': {'mmdet': '>=3.3,<3.4'},
        'mmseg': {'mmsegmentation': '>=1.2,<1.3'},
        'mmpretrain': {'mmpretrain': '>=1.2,<1.3'},
    },
}
DEFAULT_STACK = 'onedl'

# The toolboxes are optional: segmentation, for example, does not need mmdet.
REQUIRED_MODULES = ('torch', 'torchvision', 'mmengine', 'mmcv')


def requirements(stack: str) -> list[str]:
    """List the requirement strings of a stack.

    Args:
        stack: A key of ``STACKS``.

    Returns:
        One requirement for each module of the stack, PyTorch first.
    """
    modules = PYTORCH[stack] | STACKS[stack]
    return [_suggestion(dists) for dists in modules.values()]


def installed_stack() -> tuple[str, Versions]:
    """Name the installed stack and the versions of its packages.

    Only metadata is read, and nothing is checked.

    Returns:
        A key of ``STACKS``, which is the default stack where no package of
        any stack is installed; and distribution -> version of the packages
        installed, PyTorch first.
    """
    found = _find_stacks()
    stack = _first_found(found)
    return stack, _versions(_find(PYTORCH[stack]) | found[stack])


def check_environment() -> None:
    """Check that the installed packages are supported.

    Only metadata is read, so the check is fast and works without PyTorch.

    Raises:
        ImportError: If a package is missing, if its version is not accepted,
            or if distributions that provide the same module are installed
            together. The message is one sentence that ends with the command
            to run.
    """
    found = _find_stacks()
    _check_one_stack(found)
    _check_one_provider(found)
    stack = _first_found(found)
    _check_versions(
        PYTORCH[stack] | STACKS[stack], _find(PYTORCH[stack]) | found[stack]
    )


def _check_one_stack(found: dict[str, Modules]) -> None:
    """Raise if packages of both stacks are installed.

    Packages that provide different modules are refused, too: each toolbox
    depends on the engine of its own stack, so that the next installation
    would bring in both engines.
    """
    if not all(found.values()):
        return
    stacks = ' and '.join(
        f'{stack} ({list_versions(_versions(modules))})'
        for stack, modules in found.items()
    )
    installed = [d for modules in found.values() for d in _versions(modules)]
    modules = {module for modules in found.values() for module in modules}
    raise _error(
        'mmefficientmod needs the packages of one stack, but those of '
        f"{stacks} are installed together and overwrite each other's files: "
        # The default stack, since only it exists for every Python.
        + _reinstall(installed, DEFAULT_STACK, modules.union(REQUIRED_MODULES))
    )


def _check_one_provider(found: dict[str, Modules]) -> None:
    """Raise if, for example, mmcv and mmcv-lite are both installed."""
    for stack, modules in found.items():
        for module, dists in modules.items():
            if len(dists) > 1:
                raise _error(
                    f'mmefficientmod needs one package that provides {module}'
                    f', but {list_versions(dists)} are installed together and '
                    "overwrite each other's files: "
                    + _reinstall(list(dists), stack, {module})
                )


def _check_versions(modules: Modules, found: Modules) -> None:
    """Raise if a package is missing, too old or too new."""
    problems, faulty = [], set()
    for module, dists in modules.items():
        if module in found:
            dist, version = next(iter(found[module].items()))
            fault = _fault(version, dists[dist])
            if not fault:
                continue
            problem = f'{dist} {version}, which is {fault}'
        elif module in REQUIRED_MODULES:
            dist = next(iter(dists))
            problem = f'no {dist}'
        else:
            continue
        problems.append(f'{problem} (accepted: {dists[dist]})')
        faulty.add(module)
    if not problems:
        return

    # Each torchvision works with one version of torch, so replace both.
    if faulty & {'torch', 'torchvision'}:
        faulty |= {'torch', 'torchvision'}
    wanted = [
        _suggestion({d: dists[d] for d in found.get(module, dists)})
        for module, dists in modules.items()
        if module in faulty
    ]
    raise _error(
        'mmefficientmod cannot run, since it found '
        f'{" and ".join(problems)}: run `{_install(wanted)}`.'
    )


def _fault(version: str, accepted: str) -> str | None:
    """Say what is wrong with a version; None if it is accepted."""
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ImportError:
        raise _error(
            'mmefficientmod needs packaging to compare versions, and it is '
            f'not installed: run `{_install(["packaging"])}`.'
        ) from None

    ranges = SpecifierSet(accepted)
    try:
        # Nightly builds are pre-releases, and accepted.
        if ranges.contains(version, prereleases=True):
            return None
        lowest = next(s.version for s in ranges if s.operator == '>=')
        too_old = Version(version) < Version(lowest)
    except InvalidVersion:
        return 'not a version that can be compared'
    return 'too old' if too_old else 'too new'


def _find_stacks() -> dict[str, Modules]:
    return {stack: _find(modules) for stack, modules in STACKS.items()}


def _first_found(found: dict[str, Modules]) -> str:
    return next((stack for stack in found if found[stack]), DEFAULT_STACK)


def _find(modules: Modules) -> Modules:
    """Look up what is installed: module -> {distribution: version}."""
    found: Modules = {}
    for module, dists in modules.items():
        for dist in dists:
            try:
                version = metadata.version(dist)
            # An interrupted uninstallation leaves a metadata folder without
            # a version: the standard library returns None or raises KeyError;
            # `importlib_metadata`, which replaces the standard library's
            # finder once it is imported, raises FileNotFoundError.
            except (
                metadata.PackageNotFoundError,
                FileNotFoundError,
                KeyError,
            ):
                continue
            if version:
                found.setdefault(module, {})[dist] = version
    return found


def _versions(modules: Modules) -> Versions:
    return {d: v for dists in modules.values() for d, v in dists.items()}


def list_versions(dists: Versions) -> str:
    """Distributions and their versions, separated by commas."""
    return ', '.join(f'{dist} {version}' for dist, version in dists.items())


def _suggestion(dists: Versions) -> str:
    dist, accepted = next(iter(dists.items()))
    return dist + accepted


def _install(wanted: list[str]) -> str:
    # Double quotes work in every shell, that of Windows included.
    return 'uv pip install ' + ' '.join(f'"{name}"' for name in wanted)


def _reinstall(installed: list[str], stack: str, modules: set[str]) -> str:
    """Say how to repair packages that overwrote each other's files.

    All of them are uninstalled first: uninstalling only some would delete
    files of the others.
    """
    wanted = [
        _suggestion(dists)
        for module, dists in (PYTORCH[stack] | STACKS[stack]).items()
        if module in modules
    ]
    return (
        f'run `uv pip uninstall {" ".join(installed)}` and then '
        f'`{_install(wanted)}`.'
    )


def _error(message: str) -> ImportError:
    # With the name of the package, `python -m mmefficientmod` prints the
    # message on one line; without it, Python adds the traceback of runpy.
    return ImportError(message, name='mmefficientmod')
