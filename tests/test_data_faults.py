"What befalls data from outside: processes killed half way, folders damaged on disk"
import os, random, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest
from steve1.config import repo_root
from steve1.dataset import ChunkStream, DataConfig
from steve1.episodes import Episode, EpisodeError, EpisodeWriter, list_episodes, validate_episode
from steve1.generate import generate

PLAYER = '''
import time
from types import SimpleNamespace
import numpy as np

def slow(seed, n_steps, size, only=None):
    time.sleep(.05)
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 255, (n_steps//20+1,*size,3), dtype=np.uint8), 20, 0)[:n_steps]
    return SimpleNamespace(frames=frames, cols=dict(jump=rng.integers(0, 2, n_steps)), spans=[], events=[], masked=[], arena='nowhere')
'''
RUN = "from steve1.generate import generate\nif __name__ == '__main__': generate({folder!r}, 24, n_steps=120, size=(32,32), play='slow_player:slow')\n"

@pytest.fixture
def env(tmp_path):
    (tmp_path/'slow_player.py').write_text(PLAYER)
    path = os.pathsep.join([str(tmp_path), str(repo_root()), os.environ.get('PYTHONPATH', '')])
    return dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1')

def start(tmp_path, env, folder):
    script = tmp_path/'run.py'
    script.write_text(RUN.format(folder=str(folder)))
    return subprocess.Popen([sys.executable, str(script)], env=env, stderr=subprocess.DEVNULL)

def test_killed_generation_resumes(tmp_path, env, monkeypatch):
    "Killed at random moments, the dataset never shows a half-written episode and ends up as if undisturbed"
    rng, folder = random.Random(0), tmp_path/'killed'
    for k in range(8):
        p, end = start(tmp_path, env, folder), time.monotonic()+30
        while len(list(folder.glob('0*'))) <= 2*k and p.poll() is None and time.monotonic() < end: time.sleep(.005)
        time.sleep(rng.uniform(0, .1))
        assert p.poll() is None, 'it ended before it could be killed'
        p.send_signal(signal.SIGKILL); p.wait()
        for e in folder.glob('0*'): validate_episode(e)
    assert start(tmp_path, env, folder).wait(timeout=60) == 0
    monkeypatch.syspath_prepend(tmp_path)
    generate(tmp_path/'whole', 24, n_steps=120, size=(32,32), play='slow_player:slow', workers=0)
    assert [p.name for p in list_episodes(folder)] == [f'{i:06d}' for i in range(24)]
    for a,b in zip(list_episodes(folder), list_episodes(tmp_path/'whole')): assert validate_episode(a).meta == validate_episode(b).meta
    assert not list(folder.glob('.tmp-*'))

def test_killed_worker_costs_one_episode(tmp_path, env):
    "A worker process that is killed takes down its episode alone"
    folder = tmp_path/'d'
    p = start(tmp_path, env, folder)
    children = Path(f'/proc/{p.pid}/task/{p.pid}/children')
    if not children.exists(): p.kill(); pytest.skip('needs Linux to find the worker')
    end = time.monotonic()+30
    while not list(folder.glob('0*')) and time.monotonic() < end: time.sleep(.02)
    spawned = [int(c) for c in children.read_text().split() if b'spawn_main' in Path(f'/proc/{c}/cmdline').read_bytes()]
    os.kill(spawned[-1], signal.SIGKILL)
    assert p.wait(timeout=60) == 0
    assert 23 <= len(list_episodes(folder)) <= 24
    for e in list_episodes(folder): validate_episode(e)

def record(path, n=80):
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, (32,32)) as w: w.add_many(rng.integers(0, 255, (n,32,32,3), dtype=np.uint8), dict(jump=rng.integers(0, 2, n)))
    e = rng.standard_normal((n,4)).astype(np.float16); e[:15] = np.nan
    np.save(path/'embeds.npy', e)

@pytest.mark.parametrize('name', ['frames.mp4', 'actions.npy', 'embeds.npy', 'metadata.json'])
@pytest.mark.parametrize('how', ['missing', 'empty', 'cut', 'garbage'])
def test_damage_is_named(tmp_path, name, how):
    "Training from a damaged folder stops with the folder's name and a mend, never with bare numpy or FFmpeg errors"
    record(tmp_path/'good'); record(tmp_path/'bad')
    f = tmp_path/'bad'/name
    data = f.read_bytes()
    if how == 'missing': f.unlink()
    else: f.write_bytes({'empty':b'', 'cut':data[:len(data)//2], 'garbage':np.random.default_rng(1).bytes(len(data))}[how])
    with pytest.raises(EpisodeError) as e:
        stream = ChunkStream([tmp_path/'bad', tmp_path/'good'], DataConfig(T=16, max_gap=30), batch=2)
        for i in range(8): stream.batch(i)
    assert 'bad' in str(e.value) and name in str(e.value) and ('make' in str(e.value) or 'embed_episode' in str(e.value))

def test_random_damage_is_found(tmp_path):
    "One flipped byte anywhere in video or actions does not pass validation"
    record(tmp_path/'e')
    rng = random.Random(0)
    for name in ('frames.mp4', 'actions.npy'):
        f = tmp_path/'e'/name
        data = f.read_bytes()
        for _ in range(10):
            i = rng.randrange(len(data))
            f.write_bytes(data[:i] + bytes([data[i] ^ 0x55]) + data[i+1:])
            with pytest.raises(EpisodeError): validate_episode(tmp_path/'e')
        f.write_bytes(data)
