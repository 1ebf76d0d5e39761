"""The authors' EfficientMod beside ours."""

import os

import pytest
import torch
from helpers import ROOT
from torch import nn
from torch.testing import assert_close

from mmefficientmod import EfficientMod
from mmefficientmod.benchmark.model_specs import parse_model_spec
from mmefficientmod.benchmark.official import weights_key
from mmefficientmod.models.backbones.efficientmod import ModulationMlp


def test_all_models_of_a_variant_have_the_same_weights(place):
    ours = parse_model_spec('efficientmod_s').build()
    official = parse_model_spec('official:official.py:s').build()
    assert weights_key(ours) == weights_key(official)
    derived = parse_model_spec('own.py:Derived(arch="s")').build()
    assert weights_key(derived) == weights_key(ours)
    xxs = parse_model_spec('efficientmod_xxs').build()
    assert weights_key(ours) != weights_key(xxs) != weights_key(nn.ReLU())
    assert_close(
        ours.stages[1].downsample.proj.weight,
        official.model.layers[0].downsample.proj.weight,
        rtol=0,
        atol=0,
    )


def test_weights_are_far_from_initial_ones_and_drop_path_is_off():
    model = parse_model_spec('efficientmod_s').build()
    assert model.stages[0].blocks[0].gamma.mean() > 0.3
    assert not any(getattr(m, 'drop_prob', 0) for m in model.modules())
    assert EfficientMod('s').stages[0].blocks[1].drop_path.drop_prob > 0


@pytest.mark.skipif(
    'EFFICIENTMOD_OFFICIAL' not in os.environ,
    reason="EFFICIENTMOD_OFFICIAL names no copy of the authors' file",
)
def test_outputs_equal_those_of_the_authors_file(run_benchmark):
    path = os.environ['EFFICIENTMOD_OFFICIAL']
    for arch in ('xxs', 's_conv'):
        results = run_benchmark(
            f'official:{path}:{arch}', f'efficientmod_{arch}', '--inputs',
            '1x64', '--rounds', '1', '--mode', 'infer', 'train',
        )  # fmt: skip
        for result in results:
            assert 0 < result.rows[1].difference < 1e-5


@pytest.mark.parametrize(
    'name',
    [
        *(f'product.py:{way}' for way in
          ('Repeat', 'Reshape', 'Broadcast', 'BroadcastInPlace')),
        *(f'input_linears.py:{way}' for way in ('Separate', 'Merged')),
    ],
)  # fmt: skip
def test_variants_of_a_block_give_equal_outputs_and_gradients(name):
    ours = parse_model_spec('efficientmod_xxs').build()
    path = ROOT / 'tools/dev' / name
    other = parse_model_spec(f'{path}(arch="xxs")').build()
    assert type(other.stages[0].blocks[0].mlp) is not ModulationMlp
    image = torch.rand(1, 3, 32, 32)
    assert_close(other(image), ours(image))
    with torch.no_grad():
        assert_close(other(image), ours(image))
    grads = []
    for model in (ours, other):
        model(image)[-1].sum().backward()
        grads.append(model.stem.proj.weight.grad)
    assert_close(*grads)
