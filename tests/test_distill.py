"""Distillation: the loss, the teacher, and the models that learn from one."""

import copy
import math
import pickle

import pytest
import timm
import torch
from huggingface_hub import constants as hub
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.testing import assert_close

from mmefficientmod.checkpoint import CheckpointError
from mmefficientmod.cli import import_toolbox
from mmefficientmod.config import ConfigError
from mmefficientmod.models.distill import Distillation, Teacher
from mmefficientmod.models.distill.teacher import DEIT_TEACHER

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
TINY = dict(
    dims=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    attn_depths=(0, 0, 1, 1),
    expand_ratios=(2,),
    attn_mlp_ratios=(2, 2, 2, 2),
)
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
    """A data preprocessor that gives what most students see."""
    return ImgDataPreprocessor(**IMAGENET, bgr_to_rgb=True)


# ------------------------------------------------------------------ the loss


def softmax(row):
    total = sum(map(math.exp, row))
    return [math.exp(x) / total for x in row]


def by_hand(student, teacher, mode, tau):
    """The formula, a number at a time."""
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
def test_loss_by_hand(mode, tau):
    ours = [[2.0, -1.0, 0.5], [0.0, 0.1, -3.0]]
    theirs = [[1.0, 1.5, -0.5], [-2.0, 4.0, 0.0]]
    loss = Distillation(mode, tau)(torch.tensor(ours), torch.tensor(theirs))
    assert loss.item() == pytest.approx(by_hand(ours, theirs, mode, tau))


def test_loss_of_known_values():
    # KL((1/2, 1/2) || (3/4, 1/4)) = log(2 / sqrt(3)); the teacher's class is
    # the first, of which the student says 3/4.
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
    # Nothing counts: no loss, and no NaN in the gradients.
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


def test_losses_are_weighted_and_named():
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
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**options)


def test_classes_must_be_as_many():
    with pytest.raises(ConfigError, match='teacher has 4 classes and .* 3'):
        Distillation()(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match='there is only one'):
        Distillation()(torch.zeros(2, 1), torch.zeros(2, 1))


# --------------------------------------------------------------- the teacher


def test_default_teacher_is_that_of_deit():
    name = DEIT_TEACHER.removeprefix('timm:')
    cfg = timm.get_pretrained_cfg(name)
    # The file that the authors' script names.
    assert cfg.url.endswith('/deit/regnety_160-a5fe301d.pth')
    assert cfg.num_classes == 1000
    # Without the tag it would be another one.
    assert timm.get_pretrained_cfg(name.split('.')[0]).tag != 'deit_in1k'


@pytest.fixture
def resnet(tmp_path):
    """A model of timm, and a file of it: 160 pixels, mean and std 0.5."""
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
def test_teacher_sees_what_it_was_trained_on(resnet, preprocessor, size):
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


def test_images_of_the_same_normalisation_are_left_alone(resnet):
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


def test_own_mean_and_std_win(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], [0.0], [255.0], None,
                      student=student, num_classes=CLASSES)  # fmt: skip
    bgr = pixels((64, 64))
    images = torch.stack(student(dict(inputs=list(bgr)))['inputs'].unbind())
    with torch.no_grad():
        expected = resnet[0](bgr.flip(1) / 255)
    assert_close(teacher(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['config', 'dict', 'dict as the student'])
def test_teacher_of_the_toolbox(tmp_path, student, kind):
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
    assert_close(teacher(images), logits)  # batch norms learn nothing


def test_building_leaves_the_students_luck_alone(student):
    torch.manual_seed(0)
    expected = torch.rand(3)
    teachers = [
        Teacher('timm:test_resnet', 'random', student=student) for _ in '12'
    ]
    logits = []
    for seed, teacher in enumerate(teachers):
        torch.manual_seed(seed)
        logits.append(teacher(torch.ones(1, 3, 32, 32)))
    # And random weights are the same in all processes.
    assert_close(*logits, rtol=0, atol=0)
    torch.manual_seed(0)
    teachers[0].network = None
    teachers[0](torch.ones(1, 3, 32, 32))
    assert_close(torch.rand(3), expected)


def test_copies_leave_the_teachers_weights_behind(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], student=student,
                      num_classes=CLASSES)  # fmt: skip
    images = torch.randn(1, 3, 32, 32)
    logits = teacher(images)
    for other in copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher)):
        assert other.network is None
        assert_close(other(images), logits)
    assert teacher.network is not None


def test_autocast_reaches_the_teacher(resnet, student):
    teacher = Teacher('timm:test_resnet', resnet[1], student=student,
                      num_classes=CLASSES)  # fmt: skip
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = teacher(images)
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float(), teacher(images), rtol=0.1, atol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_teacher_follows_the_images(resnet, student):
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
         'does not fit ImageClassifier: it lacks backbone'),
        (dict(model={}, checkpoint='FILE'), ConfigError, 'no model with a'),
        (dict(model=classifier(head=None), checkpoint='random'), ConfigError,
         r'gives no logits \(N, classes\), but tuple'),
        (dict(model='timm:test_resnet', checkpoint='random', per_pixel=True),
         ConfigError, r'no logits \(N, classes, H, W\), but torch.Size'),
    ],
)  # fmt: skip
def test_teachers_that_cannot_be(
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
def test_bad_teachers_are_refused_at_once(student, options, message):
    with pytest.raises(ValueError, match=message):
        Teacher(**options, student=student)
