"""Which library computes matrix products, and that all give the same."""

import copy
import json
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import TINY, randomise
from torch import nn
from torch.func import vmap
from torch.nn.utils import parametrize
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmefficientmod import EfficientMod
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.layers import matmul
from mmefficientmod.models.layers.fast_linear import (
    FastLinear,
    FastPointwiseConv,
    use_fast_linear,
)
from mmefficientmod.models.layers.matmul import (
    WAYS,
    input_gradient,
    linear,
    linear_gelu,
    pointwise_conv,
    using_library,
    weight_gradient,
)

pytestmark = pytest.mark.skipif(
    not matmul.HAS_ONEDNN_LINEAR, reason='this PyTorch has no oneDNN'
)
KINDS = list(WAYS)
FORCED = ['pytorch', 'onednn']


@pytest.fixture(autouse=True)
def nothing_chosen(tmp_path, monkeypatch):
    """No choice of another test, in this process and in the file."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv(matmul.VARIABLE, raising=False)
    matmul.use_library(None)
    yield
    monkeypatch.delenv(matmul.VARIABLE, raising=False)
    matmul.use_library(None)


@pytest.fixture
def calls(monkeypatch):
    """Each product with a choice: its kind and its library."""
    found = []

    def recorded(kind, library, way):
        def call(*args):
            found.append((kind, library))
            return way(*args)

        return call

    for kind, ways in WAYS.items():
        for library, way in ways.items():
            monkeypatch.setitem(ways, library, recorded(kind, library, way))
    return found


def product(kind, rows=10, k=6, n=8):
    """A product of each kind: a function without arguments."""
    x, grad = torch.randn(rows, k), torch.randn(rows, n)
    weight, bias = torch.randn(n, k), torch.randn(n)
    image = torch.randn(1, k, rows, 1)
    return {
        'linear': lambda: linear(x, weight, bias),
        'linear with GELU': lambda: linear_gelu(x, weight, bias),
        'pointwise convolution': lambda: pointwise_conv(
            image, weight[..., None, None], bias
        ),
        'pointwise convolution, channels-last': lambda: pointwise_conv(
            image.to(memory_format=torch.channels_last),
            weight[..., None, None],
            bias,
        ),
        'input gradient': lambda: input_gradient(grad, weight),
        'weight gradient': lambda: weight_gradient(grad, x),
    }[kind]


# ------------------------------------------------------------------- equality


@pytest.mark.parametrize('library', FORCED)
@pytest.mark.parametrize('sizes', [(10, 6, 8), (1, 5, 3), (33, 48, 7)])
def test_products_equal_their_definition(library, sizes, calls):
    rows, k, n = sizes
    x, grad = torch.randn(rows, k), torch.randn(rows, n)
    weight, bias = torch.randn(n, k), torch.randn(n)
    with torch.no_grad(), using_library(library):
        found = [
            linear(x, weight),
            linear(x, weight, bias),
            linear_gelu(x, weight, bias),
            input_gradient(grad, weight),
            weight_gradient(grad, x),
        ]
    assert [used for _, used in calls] == [library] * 5
    x, grad, weight, bias = (t.double() for t in (x, grad, weight, bias))
    expected = [
        x @ weight.t(),
        x @ weight.t() + bias,
        F.gelu(x @ weight.t() + bias),
        grad @ weight,
        grad.t() @ x,
    ]
    for got, right in zip(found, expected, strict=True):
        assert got.is_contiguous()
        assert_close(got.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('library', FORCED)
@torch.no_grad()
def test_inputs_may_have_any_strides_and_dimensions(library):
    weight, bias = torch.randn(8, 6), torch.randn(8)
    image = torch.randn(2, 6, 5, 7)
    inputs = [
        image.permute(0, 2, 3, 1),
        image.permute(0, 2, 3, 1)[:, 1:4, ::2],
        image.permute(0, 2, 3, 1)[:, :1].expand(2, 5, 7, 6),
        torch.randn(6),
        torch.randn(6, 4).t(),
        torch.randn(0, 6),
    ]
    with using_library(library):
        for x in inputs:
            for w in weight, weight.t().contiguous().t():
                assert_close(linear(x, w, bias), F.linear(x, w, bias))
                assert_close(
                    linear_gelu(x, w, bias), F.gelu(F.linear(x, w, bias))
                )


@pytest.mark.parametrize('library', FORCED)
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize(
    ('memory_format', 'kind'),
    [
        (torch.contiguous_format, 'pointwise convolution'),
        (torch.channels_last, 'pointwise convolution, channels-last'),
    ],
)
@torch.no_grad()
def test_pointwise_convolution_equals_pytorchs(
    library, batch, memory_format, kind, calls
):
    x = torch.randn(batch, 6, 5, 7).to(memory_format=memory_format)
    conv = nn.Conv2d(6, 8, 1)
    with using_library(library):
        for bias in conv.bias, None:
            found = pointwise_conv(x, conv.weight, bias)
            assert found.is_contiguous(memory_format=memory_format)
            assert_close(found, F.conv2d(x, conv.weight, bias))
    assert calls == [(kind, library)] * 2


@torch.no_grad()
def test_pointwise_convolution_of_other_strides_is_pytorchs(calls):
    image = torch.randn(1, 6, 10, 7)[:, :, ::2]
    conv = nn.Conv2d(6, 8, 1)
    with using_library('onednn'):
        found = pointwise_conv(image, conv.weight, conv.bias)
    assert_close(found, conv(image))
    assert calls == []


def steps(model, image):
    """Outputs, gradients of all weights, and outputs without gradients."""
    outs = model(image)
    loss = sum(x.square().mean() for x in outs)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        return [*outs, *grads, *model(image)]


@pytest.mark.parametrize(
    'options',
    [
        dict(arch=TINY),
        dict(arch=TINY, with_cp=True, reparam=True),
        dict(arch=dict(TINY, block='mbconv')),
    ],
    ids=['plain', 'with_cp, reparam', 'mbconv'],
)
def test_network_is_the_same_in_both_libraries(options, calls):
    model = randomise(EfficientMod(**options)).train()
    image = torch.randn(2, 3, 65, 40)
    exact = steps(copy.deepcopy(model).double(), image.double())
    errors = {}
    for library in FORCED:
        calls.clear()
        with using_library(library):
            found = steps(model, image)
        assert {used for _, used in calls} == {library}
        assert {kind for kind, _ in calls} == {
            kind for kind in KINDS if 'convolution' not in kind
        }
        errors[library] = torch.stack(
            [
                (a.double() - b).norm() / b.norm().clamp_min(1e-12)
                for a, b in zip(found, exact, strict=True)
            ]
        )
    assert (errors['onednn'] <= 3 * errors['pytorch'] + 1e-6).all()


def test_second_derivatives_are_those_of_pytorch():
    arch = dict(TINY, attn_depths=(0, 0, 0, 0))
    model = randomise(EfficientMod(arch, out_indices=0))
    image = torch.randn(1, 3, 16, 16)

    def penalty():
        x = image.clone().requires_grad_()
        loss = model(x)[0].square().mean()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(
            grad.square().sum(), list(model.parameters()), allow_unused=True
        )

    found = {}
    for library in FORCED:
        with using_library(library):
            found[library] = penalty()
    assert_close(found['onednn'], found['pytorch'], rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------- the selection


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('ratio', 'library'), [(0.5, 'onednn'),
                                                (0.95, 'pytorch'),
                                                (2.0, 'pytorch')])  # fmt: skip
@torch.no_grad()
def test_faster_library_is_taken_and_kept(
    kind, ratio, library, calls, monkeypatch
):
    measured = []

    def measure(*group):
        measured.append(group)
        return ratio

    monkeypatch.setattr(matmul, 'measure', measure)
    run = product(kind)
    run()
    run()
    assert calls == [(kind, library)] * 2
    # Up to 8 rows, of 8 to 15.
    assert measured == [(kind, 8, 6, 8)]
    assert (library == 'onednn') == ('oneDNN for 1 of 1' in matmul.summary())
    # Another process reads the file.
    matmul.use_library(None)
    run()
    assert len(measured) == 1
    assert calls[-1] == (kind, library)
    (kept,) = json.loads(matmul.cache_file().read_text()).values()
    assert list(kept.values()) == [library]
    # Another number of threads is another class.
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        run()
    finally:
        torch.set_num_threads(threads)
    assert len(measured) == 2


@pytest.mark.parametrize(
    'content', ['', '[]', '{"a": ', '{"%s": 3}', '{"%s": {"%s": "cublas"}}']
)
@torch.no_grad()
def test_damaged_file_is_measured_again(content, monkeypatch):
    monkeypatch.setattr(matmul, 'measure', lambda *_: 0.5)
    key = matmul._key(('linear', 8, 6, 8, torch.get_num_threads()))
    path = matmul.cache_file()
    path.parent.mkdir()
    count = content.count('%s')
    path.write_text(content % (matmul._machine(), key)[:count])
    product('linear')()
    assert matmul.summary().startswith('matrix products on the CPU: oneDNN')
    assert json.loads(path.read_text())[matmul._machine()][key] == 'onednn'


@torch.no_grad()
def test_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path, monkeypatch, calls
):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    product('linear')()
    assert calls[-1][0] == 'linear'


def test_user_without_a_home_folder_gets_a_temporary_file(monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', '~/.cache')
    assert matmul.cache_file().is_absolute()


@pytest.mark.parametrize('kind', KINDS)
def test_measurement_changes_nothing_else(kind):
    state = torch.get_rng_state()
    ratio = matmul.measure(kind, 16, 24, 32)
    assert 0 < ratio < 1000
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@torch.no_grad()
def test_ever_new_sizes_use_pytorchs_own(calls, monkeypatch):
    """oneDNN would prepare itself for each of them."""
    monkeypatch.setattr(matmul, 'measure', lambda *_: 0.5)
    sizes = range(64, 64 + 2 * matmul.MOST_SIZES)
    for rows in sizes:
        product('linear', rows)()
    count = matmul.MOST_SIZES
    used = [library for _, library in calls]
    assert used == ['onednn'] * count + ['pytorch'] * count
    calls.clear()
    product('linear', 64)()
    product('linear', sizes[-1])()
    assert [library for _, library in calls] == ['onednn', 'pytorch']


@pytest.mark.parametrize('kind', KINDS)
def test_pytorchs_own_where_the_choice_is_no_question_of_speed(kind, calls):
    run = product(kind)
    with torch.no_grad(), using_library('onednn'):
        with FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == 2 * 10 * 6 * 8
        torch.use_deterministic_algorithms(True)
        try:
            run()
        finally:
            torch.use_deterministic_algorithms(False)
        with torch.backends.mkldnn.flags(enabled=False):
            run()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            run()
    run()  # with gradients
    assert calls.count((kind, 'onednn')) == 0


@torch.no_grad()
def test_other_dtypes_devices_and_transforms_are_left_to_pytorch(calls):
    x, weight = torch.randn(4, 5, 6), torch.randn(8, 6)
    with using_library('onednn'):
        for dtype in torch.float64, torch.bfloat16:
            linear(x.to(dtype), weight.to(dtype))
        assert linear(x.to('meta'), weight.to('meta')).shape == (4, 5, 8)
        found = vmap(linear, (0, None))(x, weight)
    assert_close(found, x @ weight.t())
    assert ('linear', 'onednn') not in calls


def test_gradients_reach_both_factors():
    x = torch.randn(4, 6, requires_grad=True)
    weight = torch.randn(8, 6, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None


@pytest.mark.parametrize('name', ['mkl', 'oneDNN'])
def test_unknown_library_is_refused(name, monkeypatch):
    with pytest.raises(ConfigError, match='one of auto, pytorch, onednn'):
        matmul.use_library(name)
    monkeypatch.setenv(matmul.VARIABLE, name)
    with pytest.raises(ConfigError, match=f"{matmul.VARIABLE} is '{name}'"):
        matmul.use_library(None)


@pytest.mark.parametrize('library', FORCED)
@torch.no_grad()
def test_variable_forces_a_library_and_an_option_overrides_it(
    library, calls, monkeypatch
):
    monkeypatch.setenv(matmul.VARIABLE, library)
    run = product('linear')
    run()
    other = FORCED[library == 'pytorch']
    with using_library(other):
        run()
    run()
    assert [used for _, used in calls] == [library, other, library]
    assert 'forced' in matmul.summary()


def test_libraries_are_compared_in_one_run(tool, monkeypatch, capsys):
    library = tool('dev/library')
    monkeypatch.setattr(library, 'ARCHS', ('xxs',))
    monkeypatch.setattr(library, 'WORKS', (('train', 1, 32),))
    threads = torch.get_num_threads()
    library.main(['--rounds', '2', '--threads', str(threads)])
    shown = capsys.readouterr().out
    assert re.search(r'\| train, 1x32 \| \d\.\d\d \|', shown)
    assert 'train, 1x32, xxs: matrix products on the CPU: oneDNN for' in shown


# --------------------------------------------------------------- whole models


@pytest.mark.parametrize('name', ['mobilevit_xxs', 'vit_tiny_patch16_224'])
@pytest.mark.parametrize('library', FORCED)
def test_model_of_timm_is_the_same_with_fast_layers(name, library, calls):
    options = dict(img_size=64) if name.startswith('vit') else {}
    model = timm.create_model(name, num_classes=3, **options).eval()
    before = copy.deepcopy(model)
    count = use_fast_linear(model)
    assert count > 10
    assert model.state_dict().keys() == before.state_dict().keys()
    image = torch.randn(2, 3, 64, 64)
    with using_library(library):
        for x in image, image.to(memory_format=torch.channels_last):
            with torch.no_grad():
                assert_close(model(x), before(x), rtol=1e-3, atol=1e-4)
        assert {used for _, used in calls} == {library}
        # With gradients it is PyTorch's own.
        calls.clear()
        assert_close(model(image), before(image), rtol=0, atol=0)
        assert 'onednn' not in {used for _, used in calls}
        traced = torch.jit.trace(model, image)
        with torch.no_grad():
            assert_close(traced(image), before(image), rtol=1e-3, atol=1e-4)


def test_layers_that_are_changed(calls):
    """Neither subclasses, nor other convolutions, nor blocks of our own."""

    class LoRA(nn.Linear):
        pass

    parametrized = nn.Linear(4, 4)
    parametrize.register_parametrization(parametrized, 'weight', nn.Identity())
    model = nn.ModuleDict(
        dict(
            linear=nn.Linear(4, 4),
            lora=LoRA(4, 4),
            parametrized=parametrized,
            pointwise=nn.Conv2d(4, 4, 1),
            strided=nn.Conv2d(4, 4, 1, stride=2),
            padded=nn.Conv2d(4, 4, 1, padding=1),
            grouped=nn.Conv2d(4, 4, 1, groups=2),
            wide=nn.Conv2d(4, 4, 3, padding='same'),
            backbone=EfficientMod(TINY),
        )
    )
    seen = []
    model.linear.register_forward_hook(lambda *args: seen.append(args))
    assert use_fast_linear(model) == 2
    assert type(model.linear) is FastLinear
    assert type(model.pointwise) is FastPointwiseConv
    assert use_fast_linear(model) == 0
    with torch.no_grad(), using_library('onednn'):
        model.linear(torch.randn(2, 4))
        model.pointwise(torch.randn(4, 3, 3))  # without a batch
    assert len(seen) == 1
    assert calls == [('linear', 'onednn')]


def test_fast_layers_are_compiled_and_exported_as_pytorchs():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    before = copy.deepcopy(model)
    use_fast_linear(model)
    image = torch.randn(1, 3, 4, 4)
    with torch.no_grad(), using_library('onednn'):
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        assert_close(compiled(image), before(image))
        exported = torch.export.export(model, (image,))
    assert 'mkldnn' not in str(exported.graph)
