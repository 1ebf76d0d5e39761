"""What this package can run on, and a check that it does.

Two stacks provide the same modules (``mmengine``, ``mmcv``, ...) under
different distribution names: the maintained ``onedl-*`` forks and the
original OpenMMLab releases. Both write into the same folders, so exactly one
of them may be installed.

The tables below are the only place where accepted versions are written:
``setup.py`` runs this file to make its extras from them. The file therefore
imports nothing but the standard library at its top.
"""

from importlib import metadata

# stack -> module -> {distribution that provides it: accepted versions}. Where
# several distributions provide a module, the first is the one we suggest.
#
# Every range is the minor series that the locks in requirements/ test, since
# these toolboxes do break their interface between minor releases. PyTorch
# does not, so its range goes on up to the next major, but for openmmlab up to
# 2.5: with 2.6, MMEngine 0.10.7 cannot load the checkpoints that it saves. It
# starts at 2.1, the oldest that is tested, but for onedl at 2.3, as
# onedl-mmsegmentation needs NumPy 2 and older PyTorch cannot use that.
PYTORCH = {
    'onedl': {
        'torch': {'torch': '>=2.3,<3'},
        'torchvision': {'torchvision': '>=0.18,<1'},
    },
    'openmmlab': {
        'torch': {'torch': '>=2.1,<2.6'},
        'torchvision': {'torchvision': '>=0.16,<0.21'},
    },
}
STACKS = {
    'onedl': {
        # 0.10.8 is the first release of the fork; mmcv 2.3.0 needs NumPy 1.
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
        # mmcv 2.2 is refused by mmdet 3.3 and mmseg 1.2 themselves. The lite
        # build comes first because the full one has to be compiled.
        'mmcv': {'mmcv-lite': '>=2.1,<2.2', 'mmcv': '>=2.1,<2.2'},
        'mmdet': {'mmdet': '>=3.3,<3.4'},
        'mmseg': {'mmsegmentation': '>=1.2,<1.3'},
        'mmpretrain': {'mmpretrain': '>=1.2,<1.3'},
    },
}
DEFAULT_STACK = 'onedl'

# The toolboxes are optional: whoever only segments need not install mmdet.
REQUIRED_MODULES = ('torch', 'torchvision', 'mmengine', 'mmcv')


def requirements(stack: str) -> list[str]:
    """Lists what to install for a stack, as requirement strings.

    Args:
        stack: A key of ``STACKS``.

    Returns:
        One requirement for each module of the stack, PyTorch included.
    """
    modules = PYTORCH[stack] | STACKS[stack]
    return [_suggestion(dists) for dists in modules.values()]


def check_environment() -> None:
    """Checks that the installed packages are ones that this package supports.

    Only metadata is read, nothing heavy is imported.

    Raises:
        ImportError: If a package is missing or of a version that is not
            accepted, or if distributions that provide the same modules are
            installed over each other. The message tells what to run.
    """
    found = {stack: _find(modules) for stack, modules in STACKS.items()}
    _check_one_stack(found)
    _check_one_provider(found)

    stack = next((name for name in STACKS if found[name]), DEFAULT_STACK)
    _check_versions(
        PYTORCH[stack] | STACKS[stack], _find(PYTORCH[stack]) | found[stack]
    )


def _check_one_stack(found: dict[str, dict[str, dict[str, str]]]) -> None:
    """Refuses packages of two stacks together.

    Also where they provide different modules: each toolbox depends on the
    engine of its own stack, so the next install brings in both.
    """
    if not all(found.values()):
        return
    held = ' and '.join(
        f'{stack} ({_listed(_merged(modules))})'
        for stack, modules in found.items()
    )
    installed = [d for modules in found.values() for d in _merged(modules)]
    modules = {module for modules in found.values() for module in modules}
    raise ImportError(
        'mmefficientmod needs the packages of one stack, but those of '
        f"{held} are installed together and overwrite each other's files: "
        # The default, as it is the one that exists for every Python.
        + _reinstall(installed, DEFAULT_STACK, modules.union(REQUIRED_MODULES))
    )


def _check_one_provider(found: dict[str, dict[str, dict[str, str]]]) -> None:
    """Refuses e.g. mmcv and mmcv-lite together."""
    for stack, modules in found.items():
        for module, dists in modules.items():
            if len(dists) > 1:
                raise ImportError(
                    f'mmefficientmod needs one package that provides {module}'
                    f', but {_listed(dists)} are installed together and '
                    "overwrite each other's files: "
                    + _reinstall(list(dists), stack, {module})
                )


def _check_versions(
    modules: dict[str, dict[str, str]], found: dict[str, dict[str, str]]
) -> None:
    """Refuses what is missing, too old or too new."""
    problems, faulty = [], set()
    for module, dists in modules.items():
        dist, version = next(iter(found.get(module, {}).items()), (None, None))
        if dist:
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

    # A torchvision works with one torch only, so they change together.
    if faulty & {'torch', 'torchvision'}:
        faulty |= {'torch', 'torchvision'}
    wanted = [
        _suggestion({d: dists[d] for d in found.get(module, dists)})
        for module, dists in modules.items()
        if module in faulty
    ]
    raise ImportError(
        'mmefficientmod cannot run here, having found '
        f'{" and ".join(problems)}: run `{_install(wanted)}`.'
    )


def _fault(version: str, accepted: str) -> str | None:
    """Tells what is wrong with a version, or None where nothing is."""
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ImportError:
        raise ImportError(
            'mmefficientmod needs packaging to compare versions, and it is '
            f'not installed: run `{_install(["packaging"])}`.'
        ) from None

    ranges = SpecifierSet(accepted)
    try:
        # Nightly builds within the range are welcome.
        if ranges.contains(version, prereleases=True):
            return None
        lowest = next(s.version for s in ranges if s.operator == '>=')
        too_old = Version(version) < Version(lowest)
    except InvalidVersion:
        return 'not a version that can be compared'
    return 'too old' if too_old else 'too new'


def _find(modules: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Keeps what is installed: module -> {distribution: version}."""
    found: dict[str, dict[str, str]] = {}
    for module, dists in modules.items():
        for dist in dists:
            try:
                version = metadata.version(dist)
            # An uninstall that was cut short leaves a folder and no version.
            # `importlib_metadata`, once imported, answers in the standard
            # library's place, and says so with a FileNotFoundError.
            except (
                metadata.PackageNotFoundError,
                FileNotFoundError,
                KeyError,
            ):
                continue
            if version:
                found.setdefault(module, {})[dist] = version
    return found


def _merged(modules: dict[str, dict[str, str]]) -> dict[str, str]:
    return {d: v for dists in modules.values() for d, v in dists.items()}


def _listed(dists: dict[str, str]) -> str:
    return ', '.join(f'{dist} {version}' for dist, version in dists.items())


def _suggestion(dists: dict[str, str]) -> str:
    dist, accepted = next(iter(dists.items()))
    return dist + accepted


def _install(wanted: list[str]) -> str:
    # Double quotes, since they alone mean the same in every shell.
    return 'uv pip install ' + ' '.join(f'"{name}"' for name in wanted)


def _reinstall(installed: list[str], stack: str, modules: set[str]) -> str:
    """Says how to get rid of an overlay.

    Everything involved has to go first: removing only one side would delete
    files that the other believes to own.
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
