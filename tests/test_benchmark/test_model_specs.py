"""Names of models, and the models that are built for them."""

import sys

import pytest
import torch
from torch.testing import assert_close

from mmefficientmod.benchmark.measure import measure_case
from mmefficientmod.benchmark.model_specs import (
    find_model_specs,
    parse_model_spec,
)
from mmefficientmod.benchmark.sources import import_file, package_hash
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.swap.names import BACKBONES


def test_pattern_expands_to_names_in_their_order():
    found = find_model_specs(['mbconv_*', 'efficientmod_s', '*vit_xxs'])
    names = [spec.name for spec in found]
    assert names == ['mbconv_xs', 'mbconv_s', 'efficientmod_s', 'edgevit_xxs']
    assert [spec.name for spec in find_model_specs(['*'])] == list(BACKBONES)
    with pytest.raises(ConfigError, match='no name matches .*repvit_m0_9'):
        find_model_specs(['repvot_*'])


def test_timm_model_is_measured(place, case, settings):
    spec = parse_model_spec('timm:regnety_004')
    (row,), _ = measure_case([spec], case, settings)
    assert row.error is None
    assert len(spec.build()(torch.rand(1, 3, 33, 40))) == 4
    with pytest.raises(ConfigError, match='did you mean .*mobilenetv2_100'):
        parse_model_spec('timm:mobilenetv2_10')


@pytest.mark.parametrize('name', ['resnet18', 'efficientmod_xxs'])
def test_build_preserves_rng_state_and_repeats_weights(name):
    spec = parse_model_spec(name)
    before = torch.get_rng_state()
    first = spec.build()
    assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    torch.rand(1)
    assert_close(first.state_dict(), spec.build().state_dict(), rtol=0, atol=0)


def test_source_changes_with_the_code_and_its_arguments(place):
    def sources():
        return [
            parse_model_spec(text).source
            for text in ('own.py:Tiny', 'own.py:Tiny(width=8)')
        ]

    before = sources()
    assert before == sources()
    assert before[0] != before[1]
    with (place / 'own.py').open('a') as file:
        file.write('# changed\n')
    assert not {*before} & {*sources()}
    assert len(package_hash()) == 12


def test_failed_import_leaves_no_module(place):
    (place / 'broken.py').write_text('import nothing_of_this_name\n')
    before = {*sys.modules}
    with pytest.raises(ConfigError, match='broken.py cannot be imported: Mod'):
        import_file('broken.py')
    assert not {x for x in {*sys.modules} - before if 'benchmarked' in x}
