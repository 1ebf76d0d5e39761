"""Results that a folder keeps, and when they are measured again."""

import json

import pytest

from mmefficientmod.config.nodes import ConfigError


@pytest.mark.slow
def test_finished_cases_are_kept(run_benchmark, place):
    argv = ['own.py:Tiny', '--rounds', '1', '--out', 'out']
    first = run_benchmark(*argv, '--inputs', '1x32')
    both = run_benchmark(*argv, '--inputs', '1x32', '1x48')
    assert both[0] == first[0]
    again = run_benchmark(*argv, '--inputs', '1x48', '1x32')
    assert again == both[::-1]
    fresh = run_benchmark(*argv, '--inputs', '1x32', '--fresh')
    assert fresh[0] != first[0]
    # Other settings or other code are measured again.
    argv[2] = '2'
    (more,) = run_benchmark(*argv, '--inputs', '1x32')
    assert len(more.rows[0].times) == 2
    # Other models of the same case are kept beside it.
    run_benchmark('efficientmod_xxs', *argv[1:], '--inputs', '1x32')
    (kept,) = run_benchmark(*argv, '--inputs', '1x32')
    assert kept == more
    with (place / 'own.py').open('a') as file:
        file.write('# changed\n')
    (changed,) = run_benchmark(*argv, '--inputs', '1x32')
    assert changed.rows[0].times != more.rows[0].times
    written = json.loads((place / 'out/results.json').read_text())
    assert len(written['results']) == 2


def test_results_of_another_machine_are_refused(run_benchmark, place):
    argv = ['own.py:Tiny', '--rounds', '1', '--out', 'out', '--inputs', '1x32']
    run_benchmark(*argv)
    path = place / 'out/results.json'
    written = json.loads(path.read_text())
    written['machine']['torch'] = '1.0'
    path.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r'torch 1\.0, now .*--fresh'):
        run_benchmark(*argv)
    path.write_text('{}')
    with pytest.raises(ConfigError, match='no file of this benchmark'):
        run_benchmark(*argv)
    run_benchmark(*argv, '--fresh')
