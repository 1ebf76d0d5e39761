"""Files from strangers: none runs code, each that is refused says why."""

import argparse
import io
import os
import pickle
import shutil
import sys
import zipfile
from contextlib import contextmanager, suppress

import hostile
import pytest
import torch
from helpers import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.model import BaseModel, initialize
from mmengine.runner import CheckpointLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mmefficientmod import EfficientMod
from mmefficientmod.apis.converting import convert_checkpoint
from mmefficientmod.checkpoint import container
from mmefficientmod.checkpoint.entry import for_run, protect
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    read_stream,
    select_weights,
    strip_prefix,
    trust_files,
)
from mmefficientmod.engine.resume import resume_as_before
from mmefficientmod.engine.runner import ToolRunner
from mmefficientmod.engine.work_dir import training_meta
from mmefficientmod.models import TimmPyramid


@pytest.fixture(scope='module')
def content():
    """A sound checkpoint of a classifier, with a training log."""
    torch.manual_seed(0)
    weights = EfficientMod(TINY, final_norm=True).state_dict()
    weights = {f'backbone.{k}': v for k, v in weights.items()}
    head = {'head.fc.weight': torch.rand(2, 32), 'head.fc.bias': torch.rand(2)}
    return hostile.sound({**weights, **head})


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    trust_files([])


def in_init_cfg(path):
    init_cfg = dict(type='Pretrained', checkpoint=path)
    EfficientMod(TINY, init_cfg=init_cfg).init_weights()


def in_toolbox_backbone(path):
    protect()
    initialize(nn.Linear(2, 2), dict(type='Pretrained', checkpoint=path))


def in_load_from(path):
    protect()
    CheckpointLoader.load_checkpoint(path, 'cpu', logger='silent')


def in_resume(path):
    resume_as_before(Config(dict(resume=True, load_from=path)))


def in_convert(path):
    head = nn.ModuleDict(dict(fc=nn.Linear(32, 2)))
    backbone = EfficientMod(TINY, final_norm=True)
    model = nn.ModuleDict(dict(backbone=backbone, head=head))
    convert_checkpoint(path, model=model)


def in_timm(path):
    overlay = dict(pretrained_cfg_overlay=dict(file=path))
    TimmPyramid(
        'mobilenetv2_035',
        timm_args=overlay,
        init_cfg=dict(type='Pretrained', checkpoint='timm'),
    ).init_weights()


ENTRIES = [
    read_checkpoint,
    in_init_cfg,
    in_toolbox_backbone,
    in_load_from,
    in_resume,
    in_convert,
]


def ids(function):
    return function.__name__


def refused(entry, path):
    """The sentence in which an entry refuses a file."""
    with pytest.raises(CheckpointError) as error:
        entry(str(path))
    message = str(error.value)
    assert 'c.pth' in message
    assert '\n' not in message
    return message


@pytest.mark.parametrize('entry', [*ENTRIES, in_timm], ids=ids)
@pytest.mark.parametrize('kind', hostile.RUNNING, ids=ids)
def test_file_runs_no_code(kind, entry, place, content):
    path, trap = place / 'c.pth', place / 'trap'
    kind(path, content, trap)
    size_of_storages = torch.UntypedStorage.__dict__.get('nbytes')
    if kind.__name__.startswith('config_text'):
        if entry is not in_timm:  # whose model has other weights
            entry(str(path))
    else:
        assert 'could run code' in refused(entry, path)
    assert not trap.exists()
    assert os.listdir(place) == ['c.pth']
    assert torch.UntypedStorage.__dict__.get('nbytes') is size_of_storages
    assert not hasattr(argparse.Namespace, 'dump_patches')


def test_text_of_a_config_is_not_handed_on(place, content):
    """MMEngine would run it when it resumes."""
    path = place / 'c.pth'
    hostile.config_text_of_old_version(path, content, place / 'trap')
    protect()
    loaded = CheckpointLoader.load_checkpoint(str(path), 'cpu', 'silent')
    assert 'config' not in loaded['meta']


def test_file_names_no_other_file_to_remove(place, content):
    """MMEngine removes the best checkpoint when a better one comes."""
    own = str(place / 'best_mIoU_iter_2.pth')
    protect()
    for named, kept in (
        (own, own),
        (str(place), None),
        (str(place / 'iter_1.pth'), None),
        ('/somewhere/best_mIoU_iter_2.pth', None),
        ([own], None),
    ):
        info = dict(best_ckpt=named, best_ckpt_top1=named, keep_ckpt_ids='ab')
        hub = {**content['message_hub'], 'runtime_info': info}
        torch.save({**content, 'message_hub': hub}, 'c.pth')
        loaded = CheckpointLoader.load_checkpoint('c.pth', 'cpu', 'silent')
        info = loaded['message_hub']['runtime_info']
        assert info.get('best_ckpt') == info.get('best_ckpt_top1') == kept
        assert 'keep_ckpt_ids' not in info


@pytest.mark.parametrize('entry', ENTRIES, ids=ids)
@pytest.mark.parametrize('kind', hostile.DAMAGED, ids=ids)
def test_damaged_file_is_refused_in_one_sentence(kind, entry, place, content):
    kind(place / 'c.pth', content)
    if entry is read_checkpoint and kind in hostile.WITHOUT_WEIGHTS:
        return  # plain reading allows other content
    refused(entry, place / 'c.pth')


@pytest.mark.parametrize('entry', [read_checkpoint, in_load_from], ids=ids)
@pytest.mark.parametrize('kind', hostile.UNBOUNDED, ids=ids)
def test_file_that_lies_about_its_size_is_refused(kind, entry, place, content):
    kind(place / 'c.pth', content)
    refused(entry, place / 'c.pth')


def test_pickle_of_too_many_instructions_is_refused(place, monkeypatch):
    monkeypatch.setattr(container, 'MOST_READS', 1000)
    hostile.write_zip(place / 'c.pth', pickle.EMPTY_LIST * 500 + b'N')
    assert read_checkpoint(place / 'c.pth') is None
    hostile.write_zip(place / 'c.pth', pickle.EMPTY_LIST * 1000 + b'N')
    assert 'too long' in refused(read_checkpoint, place / 'c.pth')


def test_tensor_that_is_not_finite_is_named(place, content):
    for kind in hostile.not_a_number, hostile.infinite:
        kind(place / 'c.pth', content)
        message = refused(read_checkpoint, place / 'c.pth')
        assert 'backbone.stem.proj.weight has values that are' in message
    state = dict(state={0: dict(exp_avg=torch.tensor([float('nan')]))})
    mask = torch.tensor([0, -float('inf')])
    torch.save({'a': {'optimizer': state}, 'attn_mask': mask}, 'c.pth')
    assert torch.equal(read_checkpoint('c.pth')['attn_mask'], mask)


def test_trusted_file_is_read_by_every_entry(place, content):
    path, trap = place / 'c.pth', place / 'trap'
    hostile.call(path, content, trap)
    for entry in ENTRIES:
        refused(entry, path)
        trust_files([str(path)])
        entry(str(path))
        assert trap.is_dir()
        trap.rmdir()
        trust_files([])
    with pytest.raises(CheckpointError, match=r'nothing\.pth does not exist'):
        trust_files(['nothing.pth'])


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x, mode='loss'):
        return dict(loss=self.line(x).mean())


def go_on(path):
    ToolRunner(
        model=Line(),
        work_dir='run',
        train_dataloader=DataLoader(
            TensorDataset(torch.rand(2, 2)),
            collate_fn=lambda x: dict(x=x[0][0][None]),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=dict(type='MultiStepLR', milestones=[2]),
        experiment_name=path,
        load_from=path,
        resume=True,
    ).train()


def test_training_state_of_wrong_types_is_refused(place):
    protect()
    torch.save(hostile.sound(Line().state_dict()), 'first.pth')
    go_on('first.pth')
    state = torch.load('run/epoch_2.pth', weights_only=False)
    for key in 'optimizer', 'param_schedulers':
        for value in 'text', [], {}, [{}], {'param_groups': [{}], 'state': 1}:
            torch.save({**state, key: value}, 'c.pth')
            with suppress(CheckpointError):  # MMEngine ignores some
                go_on('c.pth')
    torch.save({**state, 'optimizer': 'text'}, 'c.pth')
    assert 'its training state does not fit' in refused(go_on, 'c.pth')


def test_torch_load_is_ours_only_within_timm(place, content):
    before = torch.load
    hostile.call(place / 'c.pth', content, place / 'trap')
    with pytest.raises(CheckpointError, match='does not get the weights'):
        in_timm(str(place / 'c.pth'))
    assert torch.load is before


def test_names_in_a_message_do_not_steer_the_terminal(place):
    program = hostile.name('os.\x1b[2J')
    hostile.write_zip(place / 'c.pth', hostile.item('a', program))
    assert 'os.?[2J' in refused(read_checkpoint, place / 'c.pth')


def test_every_flipped_bit_is_noticed_or_without_effect(place, content):
    """Also those outside of the values, in the headers of the zip file."""
    weights = {'a.weight': torch.arange(8.0), 'b.bias': torch.arange(3)}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    data = buffer.getvalue()
    refused = 0
    for place_of_bit in range(0, 8 * len(data), 7):
        changed = bytearray(data)
        changed[place_of_bit // 8] ^= 1 << (place_of_bit % 8)
        try:
            got = read_stream(io.BytesIO(changed), 'c.pth')
        except CheckpointError:
            refused += 1
            continue
        assert list(got) == list(weights)
        for name, weight in weights.items():
            assert torch.equal(got[name], weight)
    assert refused > len(data) // 10


# What a process does when code of a file runs. A hook cannot be removed, so
# that it looks only while `watched` is set.
WATCHED = ('os.', 'subprocess.', 'shutil.', 'socket.', 'ctypes.', 'exec')
HARMLESS = ('os.fstat', 'os.putenv', 'os.listdir', 'os.scandir')
watched = None


def watch(event, arguments):
    if watched is None:
        return
    opens = event == 'open' and (
        set(str(arguments[1])) & set('wax+')
        or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    )
    if (
        event == 'import'
        or opens
        or (event.startswith(WATCHED) and event not in HARMLESS)
    ):
        watched.append((event, repr(arguments)[:200]))


@pytest.fixture(scope='module')
def audited():
    """A context in which no event may come."""
    ''.encode('cp437')  # imported for names of records
    sys.addaudithook(watch)

    @contextmanager
    def audit():
        global watched
        watched = events = []
        try:
            yield
        finally:
            watched = None
        assert not events

    return audit


def obey_no(data, audited):
    """Read bytes, and use what they hold as all entries do."""
    with audited():
        try:
            found = read_stream(io.BytesIO(data), 'c.pth')
            weights, _ = select_weights(found, 'c.pth')
            strip_prefix(weights, 'c.pth')
            training_meta(for_run(found, 'c.pth'), 'c.pth')
        except CheckpointError as error:
            message = str(error)
        else:
            message = ''
    assert '\n' not in message


def test_audit_sees_what_runs(audited, place, content):
    hostile.call(place / 'c.pth', content, place / 'trap')
    with pytest.raises(AssertionError, match='os.mkdir'), audited():
        torch.load('c.pth', weights_only=False)


# Pieces of pickles: names that are allowed and those that are not, calls,
# changes of objects, and plain values.
PIECES = st.sampled_from(
    [
        *map(
            hostile.name,
            [
                'os.system',
                'builtins.eval',
                'builtins.getattr',
                'builtins.bytearray',
                'builtins.set',
                'argparse.Namespace',
                'collections.OrderedDict',
                'collections.Counter',
                'torch.FloatStorage',
                'torch.float32',
                'torch.Size',
                'torch.device',
                'torch.nn.parameter.Parameter',
                'torch._utils._rebuild_tensor_v2',
                'torch._utils._rebuild_tensor_v3',
                'torch._tensor._rebuild_from_type_v2',
                'torch._utils._rebuild_sparse_tensor',
                'torch.storage.UntypedStorage',
                'mmengine.logging.history_buffer.HistoryBuffer',
                'numpy.core.multiarray._reconstruct',
                'numpy.core.multiarray.scalar',
                'numpy.dtype',
                '_codecs.encode',
            ],
        ),
        hostile.storage(1),
        hostile.tensor(1, (1,), (1,)),
        hostile.tensor(1, (10**9,), (0,)),
        *map(hostile.text, ['', 'state_dict', 'latin1', 'f8', 'mean', '0']),
        *map(hostile.number, [0, 1, -1, 10**12, 2**64]),
        b'(', b't', b')', b'\x85', b'\x86', b'\x87', b'R', b'\x81', b'b',
        b'}', b']', b'\x8f', b's', b'u', b'a', b'e', b'\x90', b'Q', b'N',
        b'\x88', b'q\x00', b'h\x00', b'q\x01', b'h\x01', b'.', b'0', b'2',
        b'c', b'\x93', b'\x94', b'i', b'o', b'\x92', b'\x82\x01', b'\x97',
    ]
)  # fmt: skip
PROGRAMS = st.lists(PIECES, max_size=30).map(b''.join)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.builds(torch.zeros, st.integers(0, 3))
    | st.builds(argparse.Namespace, a=st.integers()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner)
    ),
    max_leaves=8,
)
# Where a value takes the place of another one in a sound checkpoint.
PATHS = st.sampled_from(
    [
        'meta',
        'state_dict',
        'message_hub',
        'meta.seed',
        'meta.epoch',
        'meta.cfg',
        'meta.dataset_meta',
        'state_dict.0.weight',
        'message_hub.log_scalars',
        'message_hub.runtime_info',
        'message_hub.runtime_info.best_ckpt',
        'message_hub.runtime_info.keep_ckpt_ids',
    ]
)
RUN = dict(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def zipped(program, data=b'\0\0\0\0'):
    buffer = io.BytesIO()
    hostile.write_zip(buffer, program, data)
    return buffer.getvalue()


def many(cases, **arguments):
    """Run a check on so many generated cases."""
    return lambda check: settings(max_examples=cases, **RUN)(
        given(**arguments)(check)
    )()


def few_and_many(few, most):
    slow = pytest.param(most, marks=pytest.mark.slow)
    return pytest.mark.parametrize('cases', [few, slow])


@few_and_many(200, 4000)
def test_no_program_is_obeyed(cases, audited):
    obey_no(zipped(b'N'), audited)  # imports what is imported once

    @many(cases, program=PROGRAMS, old=st.booleans())
    def check(program, old):
        make = hostile.in_old_format if old else zipped
        obey_no(make(program), audited)


@few_and_many(150, 3000)
def test_no_changed_bytes_are_obeyed(cases, audited, content):
    """Bytes of the pickle are changed, or of the whole file."""
    sound = hostile.sound()
    bases, pickles = [], []
    for new in True, False:
        buffer = io.BytesIO()
        torch.save(sound, buffer, _use_new_zipfile_serialization=new)
        bases.append(buffer.getvalue())
    with zipfile.ZipFile(io.BytesIO(bases[0])) as archive:
        (inner,) = (n for n in archive.namelist() if n.endswith('data.pkl'))
        pickles.append(archive.read(inner)[2:-1])
    edits = st.lists(
        st.tuples(st.integers(0), st.binary(max_size=4), st.integers(0, 4)),
        min_size=1,
        max_size=4,
    )

    @many(cases, kind=st.integers(0, 2), edits=edits)
    def check(kind, edits):
        data = (bases + pickles)[kind]
        for place, new, removed in edits:
            place %= len(data) + 1
            data = data[:place] + new + data[place + removed :]
        obey_no(zipped(data, bytes(24)) if kind == 2 else data, audited)


@few_and_many(150, 3000)
def test_no_other_content_raises_another_error(cases, audited):
    @many(cases, where=PATHS, value=VALUES)
    def check(where, value):
        changed = hostile.sound({'0.weight': torch.ones(2)})
        *parents, last = where.split('.', 1 + where.count('runtime_info.'))
        node = changed
        for name in parents:
            node = node[name]
        node[last] = value
        buffer = io.BytesIO()
        torch.save(changed, buffer)
        obey_no(buffer.getvalue(), audited)


def test_safetensors_are_read_by_every_entry(place, content):
    from safetensors.torch import save_file

    weights = content['state_dict']
    weights = {k: v.contiguous() for k, v in weights.items()}
    save_file(weights, 'c.safetensors')
    for entry in ENTRIES:
        if entry is not in_resume:
            entry('c.safetensors')
    shutil.copy('c.safetensors', 'half.safetensors')
    os.truncate('half.safetensors', 5000)
    for entry in ENTRIES:
        with pytest.raises(CheckpointError, match='half.safetensors cannot'):
            entry('half.safetensors')
    save_file({'nan': torch.tensor(float('nan'))}, 'c.safetensors')
    with pytest.raises(CheckpointError, match='the tensor nan has values'):
        in_load_from('c.safetensors')
