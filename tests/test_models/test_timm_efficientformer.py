"""timm's EfficientFormer and EfficientFormerV2 at any image size."""

import copy
import math
import pickle

import pytest
import timm
import torch
from rivals import EFFICIENTFORMERS, build, loss_of, perturb
from torch.testing import assert_close

from mmefficientmod.models.backbones.timm_efficientformer import relative_bias


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', EFFICIENTFORMERS)
def test_outputs_and_gradients_equal_timms_at_its_own_size(name, train):
    library = perturb(timm.create_model(name)).train(train)
    ours = build(name).train(train)
    weights = library.state_dict()
    for key, value in ours.timm_model.state_dict().items():
        assert value.shape == weights[key].shape, key
        value.copy_(weights[key])
    image = torch.rand(1, 3, 224, 224)
    expected = library.forward_intermediates(image, intermediates_only=True)
    outs = ours(image)
    for out, x in zip(outs, expected, strict=True):
        assert torch.equal(out, x)
    if not train:  # in training, batch norms cancel the bias before them
        loss_of(expected).backward()
        loss_of(outs).backward()
        kept = dict(ours.timm_model.named_parameters())
        theirs = [p.grad for k, p in library.named_parameters() if k in kept]
        scale = max(grad.abs().max().item() for grad in theirs)
        assert_close(
            [p.grad for p in kept.values()],
            theirs,
            rtol=1e-3,
            atol=1e-6 * scale,  # the gradient of a bias of keys is noise
        )


@pytest.mark.parametrize('name', EFFICIENTFORMERS)
def test_another_size_uses_the_bias_table(name):
    model = perturb(build(name))
    outs = {}
    for dtype in torch.float32, torch.bfloat16:
        model.eval()
        with torch.autocast('cpu', torch.bfloat16, dtype == torch.bfloat16):
            torch.manual_seed(0)
            outs[dtype] = model(torch.rand(1, 3, 128, 160))
    for out, x in zip(*outs.values(), strict=True):
        scale = out.abs().max().item()
        assert_close(x.float(), out, rtol=0, atol=0.1 * scale)
    # The bias table changes the outputs, and gets a gradient.
    loss_of(outs[torch.float32]).backward()
    tables = [
        (key, p)
        for key, p in model.named_parameters()
        if key.endswith('attention_biases')
    ]
    assert len(tables) == (1 if name == 'efficientformer_l1' else 5)
    for key, p in tables:
        assert p.grad.abs().max() > 0, key
        p.data.mul_(2 * torch.rand_like(p))
    torch.manual_seed(0)
    again = model(torch.rand(1, 3, 128, 160))
    assert not torch.allclose(again[-1], outs[torch.float32][-1])


@pytest.mark.parametrize('size', [(7, 7), (4, 5), (16, 11), (1, 3)])
@pytest.mark.parametrize('stride', [1, 2])
def test_relative_bias_depends_on_distance(size, stride):
    table = torch.rand(2, 49, requires_grad=True)
    bias = relative_bias(table, (7, 7), size, stride)
    h, w = size
    rows, columns = math.ceil(h / stride), math.ceil(w / stride)
    assert bias.shape == (2, rows * columns, h * w)
    bias = bias.reshape(2, rows, columns, h, w)
    square = table.reshape(2, 7, 7)
    for i in range(rows):
        for j in range(columns):
            y, x = i * stride, j * stride
            # The bias depends only on the distance, at distance 0 too.
            assert_close(bias[:, i, j, y, x], square[:, 0, 0])
            assert_close(
                bias[:, i, j, y:, x:], bias[:, 0, 0, : h - y, : w - x]
            )
            assert_close(
                bias[:, i, j, : y + 1, : x + 1].flip(1, 2),
                bias[:, 0, 0, : y + 1, : x + 1],
            )
            if size == (7, 7):
                assert_close(
                    bias[:, i, j, y:, x:], square[:, : 7 - y, : 7 - x]
                )
    if h > 1:
        assert_close(bias[:, 0, 0, -1, -1], square[:, -1, -1])
    other = relative_bias(square.transpose(1, 2).flatten(1), (7, 7), (w, h))
    swapped = relative_bias(table, (7, 7), size)
    assert_close(
        other.reshape(2, w, h, w, h)
        .permute(0, 2, 1, 4, 3)
        .reshape_as(swapped),
        swapped,
    )
    bias.sum().backward()
    assert table.grad.sum() == pytest.approx(bias.numel(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', EFFICIENTFORMERS)
def test_compiles_copies_and_pickles(name):
    model = perturb(build(name)).eval()
    image = torch.rand(1, 3, 96, 64)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        expected = model(image)
        assert_close(compiled(image), expected, rtol=1e-3, atol=1e-4)
        assert_close(copy.deepcopy(model)(image), expected)
        assert_close(pickle.loads(pickle.dumps(model))(image), expected)
