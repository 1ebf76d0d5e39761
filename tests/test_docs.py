"""The pages: links, paths, commands, examples and figures are right."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT
from mmengine.config import Config

from mmefficientmod.config.toolbox import build_model
from mmefficientmod.models.backbones.efficientmod_variants import (
    ARCHS,
    PHONE_ARCHS,
    VARIANTS,
)
from mmefficientmod.swap.names import BACKBONES

PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
]
README = (ROOT / 'README.md').read_text()
TOP_FOLDERS = (
    'configs',
    'docs',
    'mmefficientmod',
    'requirements',
    'tests',
    'tools',
)
each_page = pytest.mark.parametrize(
    'page', PAGES, ids=lambda p: p.relative_to(ROOT).as_posix()
)


def anchors(page):
    """The anchors that GitHub makes of the headings of a page."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.S | re.M)
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in re.findall(r'^#+ (.+)$', text, flags=re.M)
    }


@each_page
def test_relative_links_and_anchors_resolve(page):
    broken = []
    for target in re.findall(r'\]\(([^)]+)\)', page.read_text()):
        if target.startswith('https://'):
            continue
        name, _, anchor = target.partition('#')
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def expand(text):
    """``a_{b,c}`` as ``['a_b', 'a_c']``."""
    match = re.search(r'\{([^{}]+)\}', text)
    if match is None:
        return [text]
    return [
        path
        for part in match[1].split(',')
        for path in expand(text[: match.start()] + part + text[match.end() :])
    ]


@each_page
def test_named_files_and_folders_exist(page):
    """Where a name stands for several, as in ``fpn_NAME``, one of them."""
    pattern = rf'(?<![\w./:-])(?:{"|".join(TOP_FOLDERS)})/[\w./{{}},*]*'
    missing = []
    for found in re.findall(pattern, page.read_text()):
        text = re.sub(r'\{?NAME\}?|\.{3}', '*', found.rstrip('.,'))
        missing += [path for path in expand(text) if not [*ROOT.glob(path)]]
    assert not missing


def test_map_has_every_module():
    """The table in CONTRIBUTING names the modules on disk, and no others."""
    named = set()
    for row in re.findall(
        r'^\| \d \| (`mmefficientmod/.*)$',
        (ROOT / 'CONTRIBUTING.md').read_text(),
        flags=re.M,
    ):
        folder, *names = re.findall(r'`([\w./]+)`', row)
        named |= {
            folder + name
            for name in names
            if name.endswith('.py') and '/' not in name
        }
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'mmefficientmod').rglob('*.py')
        if '.mim' not in path.parts
    }
    packages = {name for name in modules if name.endswith('__init__.py')}
    assert named - packages == modules - packages


def commands(page):
    """Command lines of the Python tools, in indented lines and in cells."""
    text = page.read_text()
    found = re.findall(
        r'^    (python tools/.+)|`((?:.*; )?python tools/[^`\n]+)`', text, re.M
    )
    variables = re.findall(r'^    ([A-Z]=.+)$', text, re.M)
    return variables, [line or cell for line, cell in found]


@each_page
def test_commands_are_accepted_by_the_tools(page, tool):
    variables, lines = commands(page)
    for line in lines:
        # In a line of usage, brackets stand around optional arguments.
        shell = '; '.join([*variables, re.sub(r'[\[\]]|\.\.\.', '', line)])
        words = subprocess.run(
            ['bash', '-c', shell.replace('python ', 'printf "%s\\n" ')],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        name, *arguments = words
        assert (ROOT / name).is_file(), line
        if name.startswith('tools/dev/'):
            continue
        try:
            tool(Path(name).stem).parse_args(arguments)
        except SystemExit:
            pytest.fail(f'{shlex.join(words)} is not accepted')


def test_readme_example_prints_what_readme_says(capsys):
    code, printed = re.search(
        r'```python\n(import torch\n(?:.*\n)*?)```\n\n    (.+)\n', README
    ).groups()
    assert len([line for line in code.splitlines() if line]) <= 5
    exec(code, {})
    assert capsys.readouterr().out.strip() == printed


def test_readme_config_builds(tmp_path):
    """The config of a user's own in README, word for word."""
    (config,) = re.findall(r'```python\n(_base_ = .*?)```', README, re.S)
    (tmp_path / 'mine.py').write_text(config)
    model = build_model(Config.fromfile(tmp_path / 'mine.py'))
    assert len(model.extract_feat(torch.rand(1, 3, 64, 64))) == 5


def indexed(task):
    """The entries of a folder's metafile, by name."""
    text = (ROOT / f'configs/{task}/metafile.yml').read_text()
    return {entry['Name']: entry for entry in yaml.safe_load(text)['Models']}


def result(entry, metric):
    """A published result as README writes it; a dash for none."""
    values = [
        str(r['Metrics'][metric])
        for r in entry.get('Results', [])
        if metric in r['Metrics']
    ]
    return values[0] if values else '-'


@pytest.mark.parametrize('arch', [*ARCHS, *PHONE_ARCHS])
def test_readme_table_agrees_with_the_model_index(arch):
    (row,) = re.findall(rf'^\| `{arch}` \| (.+) \|$', README, re.M)
    channels, *figures, weights = row.split(' | ')
    cls, seg, det = map(indexed, ('cls', 'seg', 'det'))
    plain = cls[f'efficientmod_{arch}_in1k']
    distilled = cls.get(f'efficientmod_{arch}_distill_in1k', {})
    segmentor = seg.get(f'fpn_efficientmod_{arch}_ade20k', {})
    detector = det.get(f'mask_rcnn_efficientmod_{arch}_fpn_1x_coco', {})
    assert figures == [
        f'{plain["Metadata"]["Parameters"] / 1e6:.1f} M',
        f'{plain["Metadata"]["FLOPs"] / 1e9:.2f} G',
        result(plain, 'Top 1 Accuracy'),
        result(distilled, 'Top 1 Accuracy'),
        result(segmentor, 'mIoU'),
        result(detector, 'box AP'),
    ]
    listed = {
        'plain classifier': plain,
        'distilled classifier': distilled,
        'segmentor': segmentor,
        'detector': detector,
    }
    names = [k for k, entry in listed.items() if 'Original Weights' in entry]
    assert weights == (', '.join(names) or '-')
    assert channels == ', '.join(map(str, VARIANTS[arch]['dims']))


def test_chart_has_every_backbone(tool):
    chart = tool('dev/pareto_chart')
    rows = chart.read_table((ROOT / 'docs/comparison.md').read_text())
    assert [row['backbone'] for row in rows] == [*BACKBONES]
    for row in rows:
        families = [
            family
            for family in chart.FAMILIES
            if row['backbone'].startswith(family.prefix)
        ]
        assert len(families) == 1, row['backbone']
    (ax,) = chart.draw(rows).axes
    assert {text.get_text() for text in ax.texts} >= {
        family.title for family in chart.FAMILIES
    }
