"""Two processes on CPUs give the results of one with the joined batch."""

import json
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY
from mmengine.device import get_device
from mmengine.model import convert_sync_batchnorm
from mmengine.model.wrappers import MMFullyShardedDataParallel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from mmefficientmod import EfficientMod, cli
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.engine import distributed
from mmefficientmod.engine.runner import (
    ToolRunner,
    build_runner,
    limit_workers,
)

SEG = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
DET = 'mmefficientmod::det/mask_rcnn_efficientmod_xxs_fpn_1x_coco.py'
CLS = 'mmefficientmod::cls/efficientmod_xxs_in1k.py'
DISTILLED = 'mmefficientmod::cls/efficientmod_xxs_distill_in1k.py'
# What the processes of a test import, which takes longer than what they do.
PRELOADED = ['mmefficientmod.engine.runner', 'mmseg.models', 'pytest']
pytestmark = pytest.mark.skipif(
    get_device() != 'cpu', reason='there is a GPU, which MMEngine would take'
)


class Segmentor(nn.Module):
    """A backbone and a neck with batch norm."""

    def __init__(self, reparam=None):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = EfficientMod(
            TINY, layer_scale_init_value=0.5, reparam=reparam
        )
        self.neck = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        first, *rest = self.backbone(x)
        return [self.neck(first), *rest]


def loss_of(model, x):
    return sum(out.square().mean() for out in model(x))


def images():
    return torch.randn(
        4, 3, 48, 40, generator=torch.Generator().manual_seed(1)
    )


def in_two_processes(function, *args):
    """Call ``function(rank, *args)`` in two processes.

    They are forked from a server, which has imported what they need and runs
    no threads.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(
        function, args, nprocs=2, start_method='forkserver'
    )


def run_backward(rank, folder, reparam=None):
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    torch.distributed.init_process_group(
        'gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    # The batch statistics of a half differ from those of the whole batch.
    model = Segmentor(reparam).train()
    model.neck[1].eval()
    # Each process keeps its own buffers, as in MMEngine.
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    loss_of(parallel, images()[2 * rank :][:2]).backward()
    torch.save(gradients_and_buffers(model), f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


def gradients_and_buffers(model):
    """The gradients of a step, and the statistics of its batch norms."""
    grads = {n: p.grad for n, p in model.named_parameters()}
    return grads, dict(model.named_buffers())


def test_two_processes_give_the_gradients_of_one(tmp_path):
    in_two_processes(run_backward, str(tmp_path))
    model = Segmentor().train()
    model.neck[1].eval()
    loss_of(model, images()).backward()
    expected, _ = gradients_and_buffers(model)
    for rank in range(2):
        got, _ = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_branches_keep_statistics_of_each_process_and_average_gradients(
    tmp_path,
):
    in_two_processes(run_backward, str(tmp_path), True)
    halves = []
    for half in images().split(2):
        model = Segmentor(reparam=True).train()
        model.neck[1].eval()
        loss_of(model, half).backward()
        halves.append(gradients_and_buffers(model))
    mean = {n: (halves[0][0][n] + halves[1][0][n]) / 2 for n in halves[0][0]}
    assert mean.keys() > dict(Segmentor().named_parameters()).keys()
    for rank, (_, buffers) in enumerate(halves):
        got = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert_close(got, (mean, buffers), rtol=1e-5, atol=1e-6)
    first, second = (buffers for _, buffers in halves)
    assert any((first[n] != second[n]).any() for n in first)


def test_sync_bn_conversion_leaves_the_backbone_unchanged():
    model = convert_sync_batchnorm(Segmentor(), 'torch')
    types = {n: type(m) for n, m in model.named_modules()}
    assert types['neck.1'] is nn.SyncBatchNorm
    assert nn.SyncBatchNorm not in {
        t for n, t in types.items() if n.startswith('backbone')
    }
    assert_close(model.eval()(images()), Segmentor().eval()(images()))


def run_config(config, *argv):
    """The config that the tools build from a command line."""
    parser = cli.config_arguments('')
    cli.add_run_arguments(parser)
    return cli.load_run_config(parser.parse_args([config, '--mini', *argv]))


# Configs whose loss is a mean over the samples, as it is not in detection, and
# options that turn off everything else that depends on the batch: SyncBN is
# plain BN on a CPU, with the statistics of one process, and dropout and mixup
# are seeded differently in each process.
GROUP_NORM = [
    'model.decode_head.norm_cfg.type=GN',
    'model.decode_head.norm_cfg.num_groups=8',
    'model.decode_head.dropout_ratio=0.0',
]
MEANS = [
    pytest.param(SEG, GROUP_NORM, marks=pytest.mark.slow),
    pytest.param(CLS, ['model.train_cfg=None'], marks=pytest.mark.slow),
    (DISTILLED, ['model.train_cfg=None']),
    pytest.param(
        CLS,
        [
            'model.train_cfg=None',
            'model.backbone.reparam=True',
            'model.backbone.norm_eval=True',
        ],
        marks=pytest.mark.slow,
    ),
]


def gradients(rank, ranks, config, options, folder, port):
    """The gradients of a whole model in the first step of a real run."""
    os.chdir(folder)
    launcher = 'none'
    if ranks > 1:
        launcher = 'pytorch'
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME='lo',
        )
    cfg = run_config(
        *[config, '--launcher', launcher, '--cfg-options'],
        f'train_dataloader.batch_size={4 // ranks}',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'randomness.seed=0',
        *options,
    )
    runner = build_runner(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader, runner.seed)
    wrapped = runner.model.train()
    model = wrapped.module if ranks > 1 else wrapped
    data = model.data_preprocessor(next(iter(loader)), True)
    loss, _ = model.parse_losses(wrapped(**data, mode='loss'))
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    torch.save(grads, f'{folder}/{rank}_of_{ranks}.pth')
    distributed.stop()


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(('config', 'options'), MEANS)
def test_two_processes_of_a_real_run_give_the_gradients_of_one(
    mini_place, config, options
):
    args = (config, options, str(mini_place), free_port())
    in_two_processes(gradients, 2, *args)
    gradients(0, 1, *args)
    one, *two = (
        torch.load(name, weights_only=True)
        for name in ('0_of_1.pth', '0_of_2.pth', '1_of_2.pth')
    )
    largest = max(grad.abs().max() for grad in one.values())
    assert largest > 0.01
    for got in two:
        assert_close(got, one, rtol=1e-5, atol=1e-5 * float(largest))


def script(name, *argv, **environment):
    """Run a shell script of tools/ and return what it printed."""
    run = subprocess.run(
        [ROOT / 'tools' / name, *argv],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PYTHON': sys.executable,
            'GLOO_SOCKET_IFNAME': 'lo',
            **environment,
        },
    )
    return run.returncode, run.stdout + run.stderr


# An untrained model detects nothing above the usual threshold.
DETECT_ALL = 'model.test_cfg.rcnn.score_thr=0.0'
# A config for each task. With an odd number of images, one process has one
# more than the other.
TESTED = [
    (SEG, ['test_dataloader.dataset.indices=5']),
    pytest.param(
        DET,
        ['test_dataloader.dataset.indices=3', DETECT_ALL],
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(('config', 'options'), TESTED)
def test_two_processes_give_the_metrics_and_predictions_of_one(
    tool, mini_place, config, options
):
    cfg = run_config(config, '--cfg-options', *options)
    torch.manual_seed(0)
    model = build_runner(cfg).model
    model.init_weights()
    torch.save({'state_dict': model.state_dict()}, 'weights.pth')
    argv = [config, 'weights.pth', '--mini', '--out', 'one']
    tool('test').main([*argv, '--cfg-options', *options])
    code, output = script(
        'dist_test.sh', config, 'weights.pth', '2', '--mini', '--out', 'two',
        *['--cfg-options', *options],
    )  # fmt: skip
    assert code == 0, output
    one, two = (Path(x, 'metrics.json').read_text() for x in ('one', 'two'))
    assert two == one
    files = [
        {p.name: p.read_bytes() for p in Path(x, 'predictions').iterdir()}
        for x in ('one', 'two')
    ]
    assert files[0]
    for name, content in files[0].items():
        if name.endswith('.pkl'):
            assert_same(pickle.loads(files[1][name]), pickle.loads(content))
        else:
            assert files[1][name] == content
    assert files[0].keys() == files[1].keys()
    # AP is 0 with the random weights of this test; for trained weights,
    # `test_miniatures_are_learned` compares it.
    if config == SEG:
        assert any(x > 0 for x in json.loads(one)['metrics'].values())
    else:
        found = pickle.loads(files[0]['predictions.pkl'])
        assert all(len(x['pred_instances']['scores']) > 9 for x in found)


def assert_same(got, expected):
    """Compare unpickled predictions."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for pair in zip(got, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, torch.Tensor):
        assert_close(got, expected)
    else:
        assert str(got) == str(expected)


def losses(work_dir):
    """The loss of each iteration, in full precision."""
    (path,) = Path(work_dir).glob('*/vis_data/scalars.json')
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    return {x['step']: x['loss'] for x in lines if 'loss' in x}


def short(iterations, *options):
    return [
        '--cfg-options',
        f'train_cfg.max_iters={iterations}',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=2',
        'log_processor.window_size=1',
        'val_cfg=None',
        'val_dataloader=None',
        'val_evaluator=None',
        *options,
    ]


def test_fsdp_without_support_for_cpus_is_a_user_error(mini_place):
    if fsdp_runs():
        pytest.skip('it can run here')
    code, output = script(
        'dist_train.sh', SEG, '2', '--mini', '--fsdp', *short(2)
    )
    assert code
    assert 'error: FSDP on the CPU needs a newer PyTorch than' in output


def fsdp_runs():
    """FSDP creates a stream with a priority; PyTorch 2.1 has none on CPUs."""
    try:
        torch.cpu.Stream(priority=-1)
    except TypeError:
        return False
    return True


needs_fsdp = pytest.mark.skipif(
    not fsdp_runs(), reason='this PyTorch has no FSDP on a CPU'
)


@needs_fsdp
@pytest.mark.slow
def test_fsdp_refuses_averaged_weights(mini_place):
    code, output = script('dist_train.sh', CLS, '2', '--mini', '--fsdp')
    assert code
    assert 'error: FSDP does not work with EMAHook' in output


@needs_fsdp
def test_fsdp_wraps_by_stage(tmp_path):
    torch.distributed.init_process_group(
        'gloo', f'file://{tmp_path}/rendezvous', rank=0, world_size=1
    )
    try:
        model = MMFullyShardedDataParallel(
            Segmentor(),
            auto_wrap_policy='mmefficientmod.wrap_by_stage',
            device_id='cpu',
        )
        wrapped = [
            type(m.module).__name__
            for m in model.modules()
            if isinstance(m, FullyShardedDataParallel)
        ]
    finally:
        distributed.stop()
    assert wrapped == ['Segmentor', *['Stage'] * 4]


def test_fsdp_in_one_process_is_refused(mini_place):
    cfg = run_config(SEG)
    cfg.merge_from_dict(load_config('mmefficientmod::_base_/fsdp.py'))
    with pytest.raises(ConfigError, match='FSDP needs several processes'):
        build_runner(cfg)


@pytest.mark.parametrize(
    ('wanted', 'processes', 'cores', 'expected'),
    [(8, 1, 4, 4), (8, 2, 4, 2), (8, 8, 4, 1), (3, 1, 4, 3), (0, 1, 4, 0)],
)
def test_workers_share_the_cores(
    monkeypatch, wanted, processes, cores, expected
):
    monkeypatch.setattr(distributed, 'num_cores', lambda: cores)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    cfg = dict(num_workers=wanted, persistent_workers=True)
    assert limit_workers(cfg) == dict(
        num_workers=expected, persistent_workers=expected > 0
    )


def test_data_loader_with_many_workers_gives_no_warning(recwarn):
    loader = ToolRunner.build_dataloader(
        dict(
            dataset=list(range(4)),
            sampler=dict(type='DefaultSampler'),
            num_workers=1000,
        ),
        seed=0,
    )
    assert 1 <= loader.num_workers <= (os.cpu_count() or 1)
    assert not [w for w in recwarn if 'worker' in str(w.message)]


# SGD, since Adam turns rounding errors of gradients near 0 into full steps.
# The rules depend on the type of a layer, and on the shape and the name of a
# parameter.
RULES = f"""
_base_ = '{SEG}'
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, weight_decay=0.1),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        flat_decay_mult=0.5,
        custom_keys={{
            'stages.0.blocks': dict(lr_mult=0.1),
            'neck': dict(lr_mult=2.0),
        }},
    ),
    clip_grad=dict(_delete_=True, max_norm=0.01),
)
"""


@pytest.mark.slow
@needs_fsdp
def test_fsdp_trains_as_one_process_and_resumes_as_never_stopped(
    tool, mini_place
):
    Path('rules.py').write_text(RULES)
    config = 'rules.py'
    # A constant factor, since a longer run has a longer warm-up.
    options = [*GROUP_NORM, 'param_scheduler.0.start_factor=1.0']
    argv = [config, '--mini', '--work-dir']
    tool('train').main(
        [*argv, 'one', *short(2, 'train_dataloader.batch_size=4', *options)]
    )
    argv = ['dist_train.sh', config, '2', '--mini', '--fsdp', '--work-dir']
    options = short(4, 'train_dataloader.batch_size=2', *options)
    code, output = script(*argv, 'two', *options)
    assert code == 0, output
    # The checkpoint of FSDP has the layout of any other.
    one, two = (
        torch.load(f'{name}/iter_2.pth', weights_only=False)['state_dict']
        for name in ('one', 'two')
    )
    assert_close(two, one, rtol=1e-5, atol=1e-6)

    code, output = script(
        *argv, 'rest', '--resume', 'two/iter_2.pth', *options
    )
    assert code == 0, output
    whole, rest = losses('two'), losses('rest')
    assert sorted(whole) == [1, 2, 3, 4]
    assert rest == {k: pytest.approx(whole[k], rel=1e-6) for k in (3, 4)}


# Runs dist_train.sh ($1 and following) on two nodes with one process each: two
# network namespaces, for which the script is root in a user namespace.
TWO_NODES = """
set -euo pipefail
ip link set lo up
unshare --net sleep 1000 &
second=$!
trap 'kill $second' EXIT
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/$$/ns/net)" ]
do sleep 0.1; done
ip link add left type veth peer name right netns $second
ip addr add 10.9.0.1/24 dev left
ip link set left up
inside="nsenter --target $second --net"
$inside ip addr add 10.9.0.2/24 dev right
$inside ip link set right up
$inside ip link set lo up
export NNODES=2 MASTER_ADDR=10.9.0.1
NODE_RANK=1 GLOO_SOCKET_IFNAME=right $inside "$@" &
other=$!
NODE_RANK=0 GLOO_SOCKET_IFNAME=left "$@"
wait $other
"""
NAMESPACES = ['unshare', '--user', '--map-root-user', '--net']


def namespaces_allowed():
    probe = 'unshare --net true && ip link add x type veth peer name y'
    try:
        return not subprocess.run(
            [*NAMESPACES, 'sh', '-c', probe], capture_output=True
        ).returncode
    except FileNotFoundError:
        return False


def run_two_nodes(argv):
    """Start torchrun on two nodes; without namespaces, on one machine."""
    if namespaces_allowed():
        command = [*NAMESPACES, 'bash', '-c', TWO_NODES, 'nodes', *argv]
        run = subprocess.run(
            command,
            env={**os.environ, 'PYTHON': sys.executable},
            capture_output=True,
            text=True,
        )
        return run.returncode, run.stdout + run.stderr
    where = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(free_port()))
    with ThreadPoolExecutor() as pool:
        nodes = [
            pool.submit(script, argv[0].name, *argv[1:], NODE_RANK=i, **where)
            for i in '01'
        ]
        results = [node.result() for node in nodes]
    return max(code for code, _ in results), str(results)


@pytest.mark.slow
def test_two_nodes_give_the_losses_of_one(mini_place):
    options = short(10)
    argv = ['dist_train.sh', SEG, '2', '--mini', '--work-dir', 'one']
    code, output = script(*argv, *options)
    assert code == 0, output
    argv = [ROOT / 'tools/dist_train.sh', SEG, '1', '--mini']
    code, output = run_two_nodes([*argv, '--work-dir', 'two', *options])
    assert code == 0, output
    one, two = losses('one'), losses('two')
    assert len(one) == 10
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize(
    ('argv', 'environment', 'message'),
    [
        (['dist_train.sh', SEG], {}, 'usage: tools/dist_train.sh CONFIG GPUS'),
        (['dist_test.sh', SEG, '2'], {}, 'usage: tools/dist_test.sh CONFIG'),
        (['slurm_train.sh', 'gpu'], {}, 'usage: tools/slurm_train.sh PART'),
        (['slurm_test.sh', 'gpu'], {}, 'usage: tools/slurm_test.sh PART'),
        (['dist_train.sh', SEG, '--mini'], {}, "processes, not '--mini'"),
        (
            ['dist_train.sh', SEG, '2'],
            {'NNODES': '2'},
            'NNODES=2 also needs MASTER_ADDR',
        ),
    ],
)
def test_scripts_explain_missing_arguments(argv, environment, message):
    code, output = script(*argv, **environment)
    assert code == 2
    assert message in output


def test_slurm_scripts_pass_their_arguments_to_srun(tmp_path, monkeypatch):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    code, output = script(
        *['slurm_train.sh', 'night', 'name of job', SEG, '--resume'],
        GPUS='16',
        SRUN_ARGS='--time 1:00 --exclusive',
    )
    assert code == 0, output
    lines = output.splitlines()
    pairs = dict(zip(lines, lines[1:], strict=False))
    assert pairs['--partition'] == 'night'
    assert pairs['--job-name'] == 'name of job'
    assert pairs['--gres'] == 'gpu:8'
    assert pairs['--ntasks'] == '16'
    assert pairs['--ntasks-per-node'] == '8'
    assert pairs['--time'] == '1:00'
    tool = str(ROOT / 'tools/train.py')
    assert lines[lines.index(tool) :] == [
        *[tool, SEG, '--resume', '--launcher', 'slurm']
    ]
    code, output = script(
        *['slurm_test.sh', 'night', 'job', SEG, 'x.pth', '--tta'], GPUS='2'
    )
    assert f'test.py\n{SEG}\nx.pth\n--tta\n--launcher\nslurm' in output
    assert '--ntasks-per-node\n2\n' in output


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='no shellcheck')
def test_scripts_pass_shellcheck():
    run = subprocess.run(
        ['shellcheck', '-x', '-P', 'SCRIPTDIR', *ROOT.glob('tools/*.sh')],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
