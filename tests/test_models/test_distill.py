"""Distillation: the loss, the teacher, and the students."""

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers import ROOT, TINY
from huggingface_hub import constants as hub
from mmengine.model import (
    BaseDataPreprocessor,
    ExponentialMovingAverage,
    ImgDataPreprocessor,
    convert_sync_batchnorm,
)
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.testing import assert_close

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.files import find_config, load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.models.distill import Distillation, Teacher
from mmefficientmod.models.distill.teacher import DEIT_TEACHER
from mmefficientmod.swap.backbone import swap_backbone

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
CLASSES = 5


def classifier(**changes):
    """The dict of a small classifier."""
    return (
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='mmefficientmod.EfficientMod',
                arch=TINY,
                out_indices=3,
                final_norm=True,
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead', num_classes=CLASSES, in_channels=32
            ),
            data_preprocessor=dict(IMAGENET, to_rgb=True, num_classes=CLASSES),
        )
        | changes
    )


def build(cfg, scope='mmpretrain'):
    import_toolbox(scope)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(copy.deepcopy(cfg))


def save(model, path):
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return str(path)


@pytest.fixture
def student():
    """A data preprocessor with the usual normalisation of students."""
    return ImgDataPreprocessor(**IMAGENET, bgr_to_rgb=True)


# ------------------------------------------------------------------ the loss


def softmax(row):
    total = sum(map(math.exp, row))
    return [math.exp(x) / total for x in row]


def by_hand(student, teacher, mode, tau):
    """The formula for single numbers."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        if mode == 'hard':
            total -= math.log(softmax(ours)[theirs.index(max(theirs))])
            continue
        p = softmax([x / tau for x in theirs])
        q = softmax([x / tau for x in ours])
        total += tau**2 * sum(
            a * math.log(a / b) for a, b in zip(p, q, strict=True)
        )
    return total / len(student)


@pytest.mark.parametrize(
    ('mode', 'tau'), [('soft', 1.0), ('soft', 3.0), ('hard', 1.0)]
)
def test_loss_equals_the_formula_number_by_number(mode, tau):
    ours = [[2.0, -1.0, 0.5], [0.0, 0.1, -3.0]]
    theirs = [[1.0, 1.5, -0.5], [-2.0, 4.0, 0.0]]
    loss = Distillation(mode, tau)(torch.tensor(ours), torch.tensor(theirs))
    assert loss.item() == pytest.approx(by_hand(ours, theirs, mode, tau))


def test_loss_of_simple_logits_has_its_known_value():
    # KL((1/2, 1/2) || (3/4, 1/4)) = log(2 / sqrt(3)). The teacher's class is
    # the first, whose probability is 3/4 for the student.
    ours, theirs = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    soft, hard = Distillation()(ours, theirs), Distillation('hard')
    assert soft.item() == pytest.approx(math.log(2 / math.sqrt(3)))
    assert hard(ours, theirs).item() == pytest.approx(math.log(4 / 3))
    assert Distillation(tau=2.0)(ours, ours).item() == 0


@pytest.mark.parametrize('mode', ['soft', 'hard'])
def test_loss_of_pixels_is_the_mean_over_those_that_count(mode):
    distill = Distillation(mode, tau=2.0)
    ours, theirs = torch.randn(2, 2, 4, 3, 5)
    valid = torch.rand(2, 3, 5) > 0.5
    rows = [x.movedim(1, -1) for x in (ours, theirs)]
    chosen = [x[valid] for x in rows]
    assert_close(distill(ours, theirs, valid), distill(*chosen))
    every = [x.flatten(0, 2) for x in rows]
    assert_close(distill(ours, theirs), distill(*every))
    # If no pixel counts, the loss is 0 and gradients have no NaN.
    ours.requires_grad_()
    nothing = distill(ours, theirs, torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0
    assert not ours.grad.any()


def test_loss_in_half_precision_is_that_of_float32():
    ours, theirs = torch.randn(2, 3, 1000).half()
    loss = Distillation()(ours, theirs)
    assert loss.dtype == torch.float32
    assert_close(loss, Distillation()(ours.float(), theirs.float()))


def test_losses_are_weighted_and_loss_is_renamed():
    base = dict(
        loss=torch.tensor(2.0),
        loss_aux=[torch.tensor(1.0), torch.tensor(3.0)],
        accuracy=torch.tensor(50.0),
    )
    mixed = Distillation(alpha=0.75).mix(base, torch.tensor(4.0))
    assert mixed == dict(
        loss_cls=0.5, loss_aux=[0.25, 0.75], accuracy=50.0, loss_distill=3.0
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mode='medium'), "mode='medium'; the modes are soft and hard"),
        (dict(tau=0), 'tau=0; it must be above 0'),
        (dict(alpha=1.5), 'alpha=1.5; it must be from 0 to 1'),
    ],
)
def test_bad_setting_of_the_loss_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**options)


def test_different_numbers_of_classes_are_refused():
    with pytest.raises(ConfigError, match='teacher has 4 classes and .* 3'):
        Distillation()(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match='there is only one'):
        Distillation()(torch.zeros(2, 1), torch.zeros(2, 1))


# --------------------------------------------------------------- the teacher


def test_default_teacher_is_that_of_deit():
    name = DEIT_TEACHER.removeprefix('timm:')
    cfg = timm.get_pretrained_cfg(name)
    # The file in the authors' script.
    assert cfg.url.endswith('/deit/regnety_160-a5fe301d.pth')
    assert cfg.num_classes == 1000
    # Without the tag, timm takes other weights.
    assert timm.get_pretrained_cfg(name.split('.')[0]).tag != 'deit_in1k'


@pytest.fixture
def resnet(tmp_path):
    """A model of timm and its file: 160 pixels, mean and std 0.5."""
    torch.manual_seed(3)
    model = timm.create_model('test_resnet', num_classes=CLASSES).eval()
    path = tmp_path / 'resnet.pth'
    torch.save(model.state_dict(), path)
    return model, str(path)


def pixels(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, *size)
    return torch.randint(0, 256, shape, generator=generator).float()


PREPROCESSORS = [
    ImgDataPreprocessor(**IMAGENET, bgr_to_rgb=True),
    ImgDataPreprocessor(**IMAGENET),
    ImgDataPreprocessor([127.5], [127.5], bgr_to_rgb=True),
    ImgDataPreprocessor([127.5] * 3, [127.5] * 3, bgr_to_rgb=True),
    BaseDataPreprocessor(),
]


@pytest.mark.parametrize('preprocessor', PREPROCESSORS)
@pytest.mark.parametrize('size', ['auto', None, 96, (128, 64)])
def test_teacher_gets_images_as_in_its_training(resnet, preprocessor, size):
    model, path = resnet
    model = model.double()
    bgr = pixels((96, 96))
    images = preprocessor(dict(inputs=list(bgr)))['inputs']
    images = images if torch.is_tensor(images) else torch.stack(images)
    teacher = Teacher(
        'timm:test_resnet',
        path,
        size=size,
        student=preprocessor,
        num_classes=CLASSES,
    )
    given = images.clone()
    logits = teacher(images)
    assert_close(images, given, rtol=0, atol=0)
    wanted = (bgr.flip(1).double() - 127.5) / 127.5
    side = {'auto': (160, 160), None: (96, 96), 96: (96, 96)}.get(size, size)
    if side != (96, 96):
        wanted = nn.functional.interpolate(
            wanted, side, mode='bicubic', antialias=True
        )
    with torch.no_grad():
        assert_close(logits.double(), model(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['timm', 'dict'])
def test_teacher_weights_may_lack_counters(tmp_path, resnet, student, kind):
    if kind == 'timm':
        model, source = resnet[0], 'timm:test_resnet'
    else:
        source = classifier(
            backbone=dict(type='ResNet', depth=18),
            head=dict(type='LinearClsHead', num_classes=CLASSES,
                      in_channels=512),
        )  # fmt: skip
        model = build(source).eval()
    weights = model.state_dict()
    for name in [k for k in weights if k.endswith('num_batches_tracked')]:
        del weights[name]
    path = str(tmp_path / 'c.pth')
    torch.save(dict(state_dict=weights), path)
    teacher = Teacher(source, path, student=student, num_classes=CLASSES)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher(torch.zeros(1, 3, 32, 32))
    found = teacher.network.model.state_dict()
    assert_close({k: found[k] for k in weights}, dict(weights))


def test_images_with_the_same_normalisation_are_not_copied(resnet):
    seen = []
    same = ImgDataPreprocessor([127.5] * 3, [127.5] * 3, bgr_to_rgb=True)
    teacher = Teacher('timm:test_resnet', resnet[1], size=None, student=same,
                      num_classes=CLASSES)  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    teacher(images)
    teacher.network.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    teacher(images)
    assert seen[0] is images


def test_given_mean_and_std_override_those_of_timm(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], [0.0], [255.0], None,
                      student=student, num_classes=CLASSES)  # fmt: skip
    bgr = pixels((64, 64))
    images = torch.stack(student(dict(inputs=list(bgr)))['inputs'].unbind())
    with torch.no_grad():
        expected = resnet[0](bgr.flip(1) / 255)
    assert_close(teacher(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['config', 'dict', 'dict as the student'])
def test_teacher_may_be_a_config_or_dict(tmp_path, student, kind):
    cfg = classifier()
    if kind == 'dict':
        cfg['data_preprocessor'] = dict(mean=[0.0], std=[255.0])  # BGR
    elif kind == 'dict as the student':
        cfg.pop('data_preprocessor')
    torch.manual_seed(2)
    model = build(cfg).eval()
    path = save(model, tmp_path / 'teacher.pth')
    source = cfg
    if kind == 'config':
        # As MMPretrain has it, with its own normalisation and size.
        preprocessor = dict(mean=[0.0], std=[255.0], to_rgb=True)
        cfg.pop('data_preprocessor')
        source = str(tmp_path / 'teacher.py')
        (tmp_path / 'teacher.py').write_text(
            f'model = {cfg}\n'
            f'data_preprocessor = {preprocessor}\n'
            "default_scope = 'mmpretrain'\n"
            'test_dataloader = dict(dataset=dict('
            "pipeline=[dict(type='CenterCrop', crop_size=96)]))\n"
        )
    teacher = Teacher(source, path, student=student)
    bgr = pixels((64, 64))
    images = student(dict(inputs=list(bgr)))['inputs']
    expected = {
        'config': nn.functional.interpolate(
            bgr.flip(1) / 255, (96, 96), mode='bicubic', antialias=True
        ),
        'dict': bgr / 255,
        'dict as the student': images,
    }[kind]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        logits = teacher(images)
    with torch.no_grad():
        assert_close(logits, model(expected), rtol=1e-4, atol=1e-5)


def test_teacher_is_frozen_and_without_gradients(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], size=None,
                      student=student, num_classes=CLASSES)  # fmt: skip
    images = torch.randn(4, 3, 32, 32, requires_grad=True)
    logits = teacher(images)
    assert not logits.requires_grad
    assert not any(m.training for m in teacher.network.modules())
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert_close(teacher(images), logits)  # batch norms do not change


def test_teacher_build_preserves_rng_state(student):
    torch.manual_seed(0)
    expected = torch.rand(3)
    teachers = [
        Teacher('timm:test_resnet', 'random', student=student) for _ in '12'
    ]
    logits = []
    for seed, teacher in enumerate(teachers):
        torch.manual_seed(seed)
        logits.append(teacher(torch.ones(1, 3, 32, 32)))
    # Random weights are the same in all processes.
    assert_close(*logits, rtol=0, atol=0)
    torch.manual_seed(0)
    teachers[0].network = None
    teachers[0](torch.ones(1, 3, 32, 32))
    assert_close(torch.rand(3), expected)


def test_copies_of_a_teacher_have_no_weights(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], student=student,
                      num_classes=CLASSES)  # fmt: skip
    images = torch.randn(1, 3, 32, 32)
    logits = teacher(images)
    for other in copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher)):
        assert other.network is None
        assert_close(other(images), logits)
    assert teacher.network is not None


def test_teacher_runs_in_autocast(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], student=student,
                      num_classes=CLASSES)  # fmt: skip
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = teacher(images)
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float(), teacher(images), rtol=0.1, atol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_teacher_moves_to_the_device_of_the_images(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], student=student,
                      num_classes=CLASSES)  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    logits = teacher(images)
    with torch.autocast('cuda', dtype=torch.float16):
        there = teacher(images.cuda())
    assert (there.device.type, there.dtype) == ('cuda', torch.float16)
    assert_close(there.float().cpu(), logits, rtol=0.02, atol=0.02)
    assert_close(teacher(images), logits)  # and back


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(model='timm:resnet81'), ConfigError, 'did you mean resnet18'),
        (dict(model='timm:test_resnet.x'), CheckpointError, 'tag .x.'),
        (dict(model='timm:test_resnet'), CheckpointError,
         'weights of the teacher timm:test_resnet cannot be had.*'
         'name it by teacher.checkpoint'),
        (dict(model='timm:test_resnet', checkpoint='no.pth'),
         CheckpointError, 'no.pth of the teacher does not exist'),
        (dict(model='timm:test_resnet', checkpoint='FILE', num_classes=7),
         CheckpointError, 'and 7 classes, as the student has.*size mismatch'),
        (dict(model='timm:regnety_002', checkpoint='FILE'),
         CheckpointError, 'its own number of classes.*Missing key'),
        (dict(model='no/such.py'), ConfigError, 'no/such.py does not exist'),
        (dict(model=classifier()), ConfigError, 'ImageClassifier has no wei'),
        (dict(model=classifier(), checkpoint='no.pth'), CheckpointError,
         'no.pth does not exist'),
        (dict(model=classifier(), checkpoint='FILE'), CheckpointError,
         'does not fit ImageClassifier: the file lacks backbone'),
        (dict(model={}, checkpoint='FILE'), ConfigError, 'no model with a'),
        (dict(model=classifier(head=None), checkpoint='random'), ConfigError,
         r'gives no logits \(N, classes\), but tuple'),
        (dict(model='timm:test_resnet', checkpoint='random', per_pixel=True),
         ConfigError, r'no logits \(N, classes, H, W\), but torch.Size'),
    ],
)  # fmt: skip
def test_teacher_that_cannot_be_built_is_refused(
    resnet, student, monkeypatch, options, error, message
):
    monkeypatch.setattr(hub, 'HF_HUB_OFFLINE', True)
    import_toolbox('mmpretrain')
    if options.get('checkpoint') == 'FILE':
        options = dict(options, checkpoint=resnet[1])
    teacher = Teacher(**options, student=student)
    with (
        DefaultScope.overwrite_default_scope('mmpretrain'),
        pytest.raises(error, match=message),
    ):
        teacher(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mean=[0.0]), 'one of mean and std'),
        (dict(size='big'), "size='big'"),
        (dict(size=(1, 2, 3)), r'size=\(1, 2, 3\)'),
    ],
)
def test_bad_argument_of_a_teacher_is_refused(student, options, message):
    with pytest.raises(ValueError, match=message):
        Teacher(**options, student=student)


# ------------------------------------------------------------ the classifier


@pytest.fixture
def teacher(resnet):
    """Arguments of a teacher with its file."""
    return dict(model='timm:test_resnet', checkpoint=resnet[1], size=None)


def distilled(teacher, distill=None, **changes):
    torch.manual_seed(0)
    cfg = classifier(
        **changes,
        type='mmefficientmod.DistilledClassifier',
        teacher=teacher,
        distill=distill,
    )
    model = build(cfg)
    model.init_weights()
    return model.train()


MIXED = dict(
    augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
)


def batch(model):
    """Four images and their labels, as a loader gives them."""
    from mmpretrain.structures import DataSample

    images = torch.cat([pixels((32, 32)), pixels((32, 32), seed=1)])
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('augments', [None, MIXED], ids=['plain', 'mixed'])
@pytest.mark.parametrize(
    'distill',
    [None, dict(tau=3.0, alpha=0.5), dict(mode='hard', alpha=0.5)],
    ids=['default', 'soft', 'hard'],
)
def test_losses_of_a_classifier_equal_the_formula(
    resnet, teacher, distill, augments
):
    model = distilled(teacher, distill, train_cfg=augments)
    data = model.data_preprocessor(batch(model), True)
    losses = model(**data, mode='loss')
    assert losses.keys() == {'loss_cls', 'loss_distill'}
    total, log = model.parse_losses(losses)
    assert list(log) == ['loss', 'loss_cls', 'loss_distill']

    # The same losses from logits, labels and targets.
    options = dict(mode='soft', tau=1.0, alpha=0.9) | (distill or {})
    alpha = options['alpha']
    inputs = data['inputs']
    logits = model(inputs, mode='tensor')
    mean, std = (
        torch.tensor(IMAGENET[x]).view(3, 1, 1) for x in ('mean', 'std')
    )
    with torch.no_grad():
        targets = resnet[0]((inputs * std + mean - 127.5) / 127.5)
    expected = by_hand(
        logits.tolist(), targets.tolist(), options['mode'], options['tau']
    )
    found = log['loss_distill'].item()
    assert found == pytest.approx(alpha * expected, rel=1e-3)
    if augments:
        scores = torch.stack([x.gt_score for x in data['data_samples']])
        assert ((scores > 0).sum(1) == 2).any()
    else:
        scores = torch.cat([x.gt_label for x in data['data_samples']])
    base = nn.functional.cross_entropy(logits, scores)
    assert log['loss_cls'].item() == pytest.approx((1 - alpha) * base.item())
    assert total == log['loss_cls'] + log['loss_distill']


def test_teacher_and_student_get_the_same_mixed_images(teacher):
    model = distilled(teacher, train_cfg=MIXED)
    data = model.data_preprocessor(batch(model), True)
    seen = []
    watched = model.backbone, model.teacher._build()
    model.teacher.network = watched[1]
    for module in watched:
        module.register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
    model(**data, mode='loss')
    assert len(seen) == 2
    assert seen[0] is seen[1] is data['inputs']


def test_only_the_student_classifier_is_trained(teacher):
    model = distilled(teacher)
    losses = model.loss(**model.data_preprocessor(batch(model), True))
    losses['loss_distill'].backward()
    network = model.teacher.network
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in network.parameters())

    before, theirs = copy.deepcopy((model.state_dict(), network.state_dict()))
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model.train_step(batch(model), OptimWrapper(optimizer))
    after = model.state_dict()
    changed = {k for k in before if not torch.equal(after[k], before[k])}
    assert {'backbone.stem.proj.weight', 'head.fc.weight'} <= changed
    assert not any(m.training for m in network.modules())
    assert_close(network.state_dict(), theirs, rtol=0, atol=0)


def test_copies_and_state_of_the_student_have_no_teacher(teacher):
    plain = build(classifier())
    model = distilled(teacher)
    model.loss(**model.data_preprocessor(batch(model), True))
    assert model.teacher.network is not None
    names = [name for name, _ in plain.named_parameters()]
    average = ExponentialMovingAverage(model)
    assert average.module.teacher.network is None
    for student in model, average.module, copy.deepcopy(model):
        assert [name for name, _ in student.named_parameters()] == names
        assert list(student.state_dict()) == list(plain.state_dict())
        buffers = [name for name, _ in student.named_buffers()]
        assert buffers == [name for name, _ in plain.named_buffers()]
    kinds = {type(m) for m in convert_sync_batchnorm(model).modules()}
    assert nn.SyncBatchNorm not in kinds
    assert len(pickle.dumps(model)) < 1.2 * len(pickle.dumps(plain))
    assert {p.dtype for p in model.half().teacher.network.parameters()} == {
        torch.float32
    }


def test_checkpoints_load_into_plain_and_distilled_classifier(teacher):
    plain, model = build(classifier()), distilled(teacher)
    plain.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    plain.eval()
    assert_close(model(images), plain(images), rtol=0, atol=0)
    scores = [m.predict(images)[0].pred_score for m in (model, plain)]
    assert_close(*scores, rtol=0, atol=0)
    assert model.teacher.network is None  # testing needs none
    model.load_state_dict(build(classifier()).state_dict(), strict=True)


def test_initial_weights_do_not_depend_on_the_teacher(teacher):
    model = distilled(teacher)
    torch.manual_seed(0)
    plain = build(classifier())
    plain.init_weights()
    assert_close(dict(model.state_dict()), dict(plain.state_dict()))


def test_head_runs_once_for_both_losses(teacher):
    """A second call would draw other dropout."""
    model = distilled(
        teacher,
        head=dict(
            type='StackedLinearClsHead',
            num_classes=CLASSES,
            in_channels=32,
            mid_channels=[16],
            dropout_rate=0.5,
            topk=(1,),
            cal_acc=True,
        ),
    )
    asked = []
    model.head.register_forward_hook(lambda *args: asked.append(args[-1]))
    losses = model.loss(**model.data_preprocessor(batch(model), True))
    assert len(asked) == 1
    assert losses.keys() == {'loss_cls', 'loss_distill', 'accuracy_top-1'}
    assert len(model.head._forward_hooks) == 1  # the hook of this test


def test_distilled_classifier_trains_in_autocast(teacher):
    model = distilled(teacher)
    data = model.data_preprocessor(batch(model), True)
    expected = model.parse_losses(model.loss(**data))[0]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(**data)
    loss = model.parse_losses(losses)[0]
    loss.backward()
    assert losses['loss_distill'].dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_student_and_teacher_that_do_not_match_are_refused(teacher):
    with pytest.raises(ConfigError, match='head MultiLabelLinearClsHead'):
        distilled(
            teacher,
            head=dict(
                type='MultiLabelLinearClsHead',
                num_classes=CLASSES,
                in_channels=32,
            ),
        )
    model = distilled(dict(model=classifier(), checkpoint='random'))
    model.head.fc = nn.Linear(32, 7)
    with (
        DefaultScope.overwrite_default_scope('mmpretrain'),
        pytest.raises(ConfigError, match='has 5 classes and the student 7'),
    ):
        model.loss(**model.data_preprocessor(batch(model), True))
    with pytest.raises(TypeError, match="argument 'ckpt'"):
        distilled(dict(ckpt='x.pth'))
    with pytest.raises(TypeError, match="argument 'temperature'"):
        distilled(teacher, dict(temperature=2))
    with pytest.raises(TypeError, match="argument 'bakcbone'"):
        distilled(teacher, bakcbone=None)


def test_head_with_several_logits_is_refused(teacher):
    model = distilled(teacher)

    class Pair(type(model.head)):
        def forward(self, feats):
            logits = super().forward(feats)
            return [logits, logits]

        def _get_loss(self, cls_score, data_samples):
            return super()._get_loss(cls_score[0], data_samples)

    model.head.__class__ = Pair
    with pytest.raises(ConfigError, match='Pair, which gives no single'):
        model.loss(**model.data_preprocessor(batch(model), True))


def test_package_imports_without_toolboxes_and_timm():
    """Only the two models need them, and an error says so."""
    code = """
import sys
sys.modules.update(mmpretrain=None, mmseg=None, timm=None)
import mmefficientmod
import mmefficientmod.models.distill
from mmengine.registry import MODELS
assert MODELS.get('mmefficientmod.EfficientMod')
for kind, toolbox in ('Classifier', 'mmpretrain'), ('Segmentor', 'mmseg'):
    try:
        MODELS.get(f'mmefficientmod.Distilled{kind}')
    except ModuleNotFoundError as error:
        assert toolbox in str(error)
    else:
        raise SystemExit(f'{kind} without {toolbox}')
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_backbone_of_a_distilled_classifier_can_be_swapped():
    cfg = load_config(CONFIG.format('s_distill'))
    before = copy.deepcopy(cfg.model)
    new = swap_backbone(cfg, 'efficientmod_xxs').model
    assert new.type == 'mmefficientmod.DistilledClassifier'
    assert (new.backbone.arch, new.head.in_channels) == ('xxs', 256)
    assert (new.teacher, new.distill) == (before.teacher, before.distill)


# ------------------------------------------------------------- the miniature

CONFIG = 'mmefficientmod::cls/efficientmod_{}_in1k.py'
# Two steps of two images.
FEW = [
    'train_cfg.max_epochs=1',
    'train_dataloader.dataset.indices=4',
    'train_dataloader.batch_size=2',
    'val_dataloader.dataset.indices=2',
    'test_dataloader.dataset.indices=2',
    'default_hooks.logger.interval=1',
]


@pytest.mark.parametrize(
    'variant',
    [
        'xxs',
        *(
            pytest.param(v, marks=pytest.mark.slow)
            for v in ('xs', 's', 's_conv')
        ),
    ],
)
def test_distilled_config_trains_and_tests_like_the_plain_one(
    tool, mini_place, capsys, variant
):
    config = CONFIG.format(f'{variant}_distill')
    options = ['--cfg-options', *FEW]
    runner = tool('train').main(
        [config, '--mini', '--work-dir', 'run', *options]
    )
    printed = capsys.readouterr().out
    assert 'The teacher timm:regnety_002 has random weights' in printed
    assert runner.model.teacher.network is not None
    (scalars,) = Path('run').glob('*/vis_data/scalars.json')
    log = json.loads(scalars.read_text().splitlines()[0])
    parts = log['loss_cls'] + log['loss_distill']
    assert log['loss'] == pytest.approx(parts, rel=1e-4)

    state = torch.load('run/epoch_1.pth', weights_only=False)
    plain = CONFIG.format(variant)
    (names, averaged) = (
        set(state['state_dict']),
        {k[7:] for k in state['ema_state_dict'] if k != 'steps'},
    )
    argv = ['run/epoch_1.pth', '--mini', *options]
    metrics = [tool('test').main([c, *argv]) for c in (config, plain)]
    assert metrics[0] == metrics[1]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        student = MODELS.build(load_config(plain).model)
    student.load_state_dict(state['state_dict'], strict=True)
    assert names == averaged == set(student.state_dict())


def test_trained_config_teaches_another(tool, mini_place, capsys):
    """The teacher is named by options, as docs/distillation.md says."""
    config = CONFIG.format('xxs')
    options = ['--cfg-options', *FEW]
    tool('train').main([config, '--mini', '--work-dir', 'teacher', *options])
    options += [
        f'model.teacher.model={config}',
        'model.teacher.checkpoint=teacher/epoch_1.pth',
    ]
    capsys.readouterr()
    config = CONFIG.format('xxs_distill')
    runner = tool('train').main([config, '--mini', *options])
    printed = capsys.readouterr().out
    assert 'images as they come' in printed
    assert 'random weights' not in printed
    weights = torch.load('teacher/epoch_1.pth', weights_only=False)
    assert_close(
        dict(runner.model.teacher.network.model.state_dict()),
        dict(weights['state_dict']),
    )


# ------------------------------------------------------------- the segmentor

NORM = dict(type='BN', requires_grad=True)


def segmentor(**changes):
    """The dict of a small Semantic FPN."""
    return (
        dict(
            type='mmseg.EncoderDecoder',
            data_preprocessor=dict(
                type='SegDataPreProcessor',
                **IMAGENET,
                bgr_to_rgb=True,
                size=(32, 48),
                seg_pad_val=255,
            ),
            backbone=dict(type='mmefficientmod.EfficientMod', arch=TINY),
            neck=dict(
                type='FPN',
                in_channels=[8, 16, 24, 32],
                out_channels=8,
                num_outs=4,
            ),
            decode_head=dict(
                type='FPNHead',
                in_channels=[8] * 4,
                in_index=[0, 1, 2, 3],
                feature_strides=[4, 8, 16, 32],
                channels=8,
                dropout_ratio=0.0,
                num_classes=CLASSES,
                norm_cfg=NORM,
            ),
            auxiliary_head=dict(
                type='FCNHead',
                in_channels=8,
                in_index=1,
                channels=8,
                num_convs=1,
                dropout_ratio=0.0,
                num_classes=CLASSES,
                norm_cfg=NORM,
            ),
            test_cfg=dict(mode='whole'),
        )
        | changes
    )


@pytest.fixture
def coarse(tmp_path):
    """A teacher with logits at stride 8, and the arguments that name it."""
    cfg = segmentor(auxiliary_head=None)
    cfg['decode_head'] = dict(
        segmentor()['auxiliary_head'], concat_input=False
    )
    torch.manual_seed(4)
    model = build(cfg, 'mmseg').eval()
    # With its initial weights, all classes would have the same logits.
    for module in model.decode_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
    path = save(model, tmp_path / 'coarse.pth')
    return model, dict(model=cfg, checkpoint=path)


def distilled_segmentor(teacher, distill=None, **changes):
    torch.manual_seed(0)
    cfg = segmentor(
        type='mmefficientmod.DistilledSegmentor',
        teacher=teacher,
        distill=distill,
        **changes,
    )
    return build(cfg, 'mmseg').train()


def scenes():
    """Two images, one of them to be padded, with labels for some pixels."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples, images = [], []
    for height in (32, 24):
        label = torch.randint(CLASSES, (1, 8, 12), generator=generator)
        label[torch.rand(label.shape, generator=generator) < 0.3] = 255
        # Each logit is compared at one pixel of a square of 4x4.
        label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
        label = label[:, :height]
        sample = SegDataSample(metainfo=dict(img_shape=(height, 48)))
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
        images.append(pixels((height, 48), seed=height)[0])
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize(
    'distill', [dict(tau=2.0, alpha=0.5), dict(mode='hard', alpha=0.75)]
)
def test_losses_of_a_segmentor_equal_the_formula(coarse, distill):
    model = distilled_segmentor(coarse[1], distill)
    plain = build(segmentor(), 'mmseg').train()
    plain.load_state_dict(model.state_dict(), strict=True)
    data = model.data_preprocessor(scenes(), True)
    with DefaultScope.overwrite_default_scope('mmseg'):
        losses = model(**data, mode='loss')
    labels_alone = plain(**data, mode='loss')
    assert list(losses) == [
        'decode.loss_ce', 'decode.acc_seg', 'loss_distill', 'aux.loss_ce',
        'aux.acc_seg',
    ]  # fmt: skip
    alpha = distill['alpha']
    weights = {'decode.loss_ce': 1 - alpha}
    for name, value in labels_alone.items():
        assert_close(losses[name], value * weights.get(name, 1))

    # The same loss pixel by pixel; each logit is compared at one of 4x4.
    inputs = data['inputs']
    with torch.no_grad():
        targets = coarse[0](inputs, mode='tensor')
        assert targets.shape[2:] == (4, 6)
        targets = nn.functional.interpolate(
            targets, (8, 12), mode='bilinear', align_corners=False
        )
    logits = model(inputs, mode='tensor')
    rows = []
    for n, sample in enumerate(data['data_samples']):
        label = sample.gt_sem_seg.data[0]
        assert label.shape == (32, 48)
        for y in range(8):
            for x in range(12):
                if label[4 * y, 4 * x] != 255:
                    rows.append((logits[n, :, y, x], targets[n, :, y, x]))
    assert 20 < len(rows) < 2 * 8 * 12 - 24
    ours, theirs = (
        [x.tolist() for x in row] for row in zip(*rows, strict=True)
    )
    expected = by_hand(
        ours, theirs, distill.get('mode', 'soft'), distill.get('tau', 1.0)
    )
    found = losses['loss_distill'].item()
    assert found == pytest.approx(alpha * expected, rel=1e-3)
    assert found > 0.01


def test_only_the_student_segmentor_is_trained(coarse):
    model = distilled_segmentor(coarse[1])
    plain = build(segmentor(), 'mmseg')
    assert list(model.state_dict()) == list(plain.state_dict())
    with DefaultScope.overwrite_default_scope('mmseg'):
        losses = model.loss(**model.data_preprocessor(scenes(), True))
    losses['loss_distill'].backward()
    parts = {
        n.split('.')[0]
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    assert parts == {'backbone', 'neck', 'decode_head'}
    network = model.teacher.network
    assert not any(m.training for m in network.modules())
    assert all(p.grad is None for p in network.parameters())
    plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        (dict(type='PointHead', in_channels=[8], in_index=[0], channels=8),
         'PointHead has a loss of its own'),
        (dict(type='EncHead', in_channels=[8, 8], in_index=[0, 1],
              channels=8, num_codes=2, norm_cfg=NORM),
         'EncHead, which gives no single tensor of logits'),
    ],
)  # fmt: skip
def test_head_without_a_single_map_of_logits_is_refused(coarse, head, message):
    head = dict(head, num_classes=CLASSES)

    def learn():
        model = distilled_segmentor(coarse[1], decode_head=head)
        model.loss(**model.data_preprocessor(scenes(), True))

    with (
        DefaultScope.overwrite_default_scope('mmseg'),
        pytest.raises(ConfigError, match=message),
    ):
        learn()


def test_segmentor_needs_a_teacher_of_pixels(coarse):
    with pytest.raises(TypeError, match="argument: 'teacher'"):
        build(segmentor(type='mmefficientmod.DistilledSegmentor'), 'mmseg')
    model = distilled_segmentor(
        dict(model='timm:test_resnet', checkpoint='random')
    )
    with pytest.raises(ConfigError, match=r'no logits \(N, classes, H, W\)'):
        model.loss(**model.data_preprocessor(scenes(), True))


DOCS = (ROOT / 'docs/distillation.md').read_text()


@pytest.mark.parametrize('number', [0, 1])
def test_example_in_docs_builds(tmp_path, number):
    text = DOCS.split('```python\n')[1 + number].split('```')[0]
    # MMEngine finds the config only in an installed package.
    name = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
    path = tmp_path / 'mine.py'
    path.write_text(text.replace(name, str(find_config(name))))
    cfg = load_config(str(path))
    cfg.model.data_preprocessor = cfg.data_preprocessor
    scope = ('mmpretrain', 'mmseg')[number]
    model = build(cfg.model, scope)
    kind = ('DistilledClassifier', 'DistilledSegmentor')[number]
    assert type(model).__name__ == kind
    assert model.teacher.given.rgb
    assert model.teacher.given.mean == pytest.approx(IMAGENET['mean'])


DISTILLED_FPN = """
_base_ = '{plain}'
model = dict(
    type='mmefficientmod.DistilledSegmentor',
    teacher=dict(model='{plain}', checkpoint='teacher.pth'),
    distill=dict(alpha=0.5),
)
"""


def test_distilled_semantic_fpn_trains(tool, mini_place):
    plain = find_config('mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py')
    cfg = load_config(str(plain))
    save(build(cfg.model, 'mmseg'), 'teacher.pth')
    Path('fpn_distill.py').write_text(DISTILLED_FPN.format(plain=plain))
    options = [
        '--cfg-options',
        'train_cfg.max_iters=2',
        'val_cfg=None',
        'val_dataloader=None',
        'val_evaluator=None',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=2',
    ]
    tool('train').main(
        ['fpn_distill.py', '--mini', '--work-dir', 'run', *options]
    )
    (scalars,) = Path('run').glob('*/vis_data/scalars.json')
    log = json.loads(scalars.read_text().splitlines()[0])
    assert log['loss_distill'] > 0
    parts = log['decode.loss_ce'] + log['loss_distill']
    assert log['loss'] == pytest.approx(parts, rel=1e-4)
    weights = torch.load('run/iter_2.pth', weights_only=False)['state_dict']
    build(cfg.model, 'mmseg').load_state_dict(weights, strict=True)
