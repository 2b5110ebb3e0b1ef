"""The installed command, from outside: a whole distillation, a process that is killed, and bad input."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [str(Path(sys.executable).parent/'manifoldgd')]
DISTILL = ['distill', '--ipc', '1', '--num-inference-steps', '5', '--device', 'cpu', '--batch-size', '1']


@pytest.fixture
def run(tmp_path):
    env = os.environ | {'MANIFOLDGD_CACHE': str(tmp_path/'cache'), 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'NO_COLOR': '1'}
    return lambda *args: subprocess.run(COMMAND + [*map(str, args)], capture_output=True, text=True, env=env, cwd=tmp_path)


def images(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(Path(out).rglob('*.png'))}


def test_killed_run_resumes_with_the_same_images(run, tmp_path):
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    assert run(*DISTILL, '--out', whole).returncode == 0
    env = os.environ | {'MANIFOLDGD_CACHE': str(tmp_path/'cache'), 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1'}
    process = subprocess.Popen([*COMMAND, *DISTILL, '--out', str(killed)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list((killed/'images').rglob('*.png'))) < 3 and process.poll() is None and time.time() < deadline: time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = images(killed)
    assert 3 <= len(made) < 10, 'the process was to be killed in the middle'
    assert not json.loads((killed/'manifest.json').read_text())['finished']
    assert run(*DISTILL, '--out', killed).returncode == 0
    assert images(killed) == images(whole)
    assert json.loads((killed/'manifest.json').read_text())['finished']
    assert not list(killed.rglob('*.tmp')), 'a resumed run leaves no half-written files behind'


def test_distill_and_evaluate(run, tmp_path):
    done = run(*DISTILL, '--preset', 'random')
    assert done.returncode == 0 and 'runs/digits-random-ipc1-seed0' in done.stdout, done.stderr
    done = run('evaluate', 'runs/digits-random-ipc1-seed0', '--seeds', 1)
    assert done.returncode == 0 and 'random' in done.stdout, done.stderr
    assert len((tmp_path/'results.csv').read_text().splitlines()) == 2


def test_metrics_of_real_images(run, tmp_path):
    "A run that has no backbone: no latents, so no distance off the manifold."
    assert run(*DISTILL, '--preset', 'random').returncode == 0
    done = run('metrics', 'runs/digits-random-ipc1-seed0', '--draws', 2)
    assert done.returncode == 0 and 'real images' in done.stdout and 'student ConvNet-3' in done.stdout, done.stderr
    assert len((tmp_path/'metrics.csv').read_text().splitlines()) == 10
    done = run('metrics', 'runs/digits-random-ipc1-seed0', '--draws', 2, '--features', 'latents')
    assert done.returncode == 2 and '`--backbone`' in done.stderr and 'Traceback' not in done.stderr


def test_random_photographs_need_no_backbone(run, tmp_path):
    "Any folder of JPEGs, whatever their sizes, and a student trained on two of them."
    from PIL import Image
    for split in ('train', 'test'):
        for c, color in (('red', (200, 40, 30)), ('blue', (20, 30, 220))):
            (tmp_path/'photos'/split/c).mkdir(parents=True)
            for i in range(3): Image.new('RGB', (40 + i, 33), color).save(tmp_path/'photos'/split/c/f'{i}.jpg')
    done = run('distill', '--data', 'photos', '--preset', 'random', '--ipc', 1)
    assert done.returncode == 0, done.stderr
    sizes = {Image.open(p).size for p in (tmp_path/'runs'/'photos-random-ipc1-seed0'/'images').rglob('*.png')}
    assert sizes <= {(40 + i, 33) for i in range(3)}
    done = run('evaluate', 'runs/photos-random-ipc1-seed0', '--protocol', 'plain-32', '--seeds', 1)
    assert done.returncode == 0 and 'of 32 x 32 pixels' in done.stdout, done.stderr
    done = run('evaluate', 'runs/photos-random-ipc1-seed0', '--protocol', 'digits-quick')
    assert done.returncode == 2 and 'such as hard-label-32' in done.stderr


@pytest.mark.parametrize('arguments, words', [
    (['distill', '--ipc', '500'], ['`ipc`', '500']),
    (['distill', '--data', 'nowhere'], ['nowhere']),
    (['distill', '--backbone', './nowhere'], ['nowhere']),
    (['distill', '--preset', 'best'], ['best']),
    (['distill', '--out', 'taken'], ['taken', '--out']),
    (['evaluate', 'taken'], ['taken']),
    (['metrics', 'taken'], ['taken']),
])
def test_bad_input_is_one_clear_line(run, tmp_path, arguments, words):
    (tmp_path/'taken').mkdir()
    (tmp_path/'taken'/'thesis.txt').write_text('years of work')
    done = run(*arguments)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    message = [line for line in done.stderr.splitlines() if line.startswith('manifoldgd:')] or done.stderr.splitlines()
    assert len(message) == 1 or arguments[1] == '--preset', done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != 'cache'] == ['taken'] and [p.name for p in (tmp_path/'taken').iterdir()] == ['thesis.txt']


@pytest.mark.parametrize('content', [b'', b'not an image', b'\x89PNG\r\n\x1a\n cut off'])
def test_unreadable_image_is_named(run, tmp_path, content):
    from PIL import Image
    for c in ('0', '1'):
        (tmp_path/'data'/c).mkdir(parents=True)
        Image.new('L', (32, 32), 9).save(tmp_path/'data'/c/'a.png')
    (tmp_path/'data'/'1'/'b.png').write_bytes(content)
    done = run('distill', '--data', 'data', '--ipc', '1', '--out', 'out', '--strict')
    assert done.returncode == 2 and 'b.png' in done.stderr and 'Traceback' not in done.stderr
