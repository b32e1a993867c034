"What befalls data from outside: processes killed half way, folders damaged on disk, networks that break, recordings of an hour"
import os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import fsspec, numpy as np, pytest
from steve1.config import repo_root
from steve1.dataset import ChunkStream, DataConfig
from steve1.episodes import Episode, EpisodeWriter, list_episodes, validate_episode
from steve1.base.video import EpisodeError
from steve1.data.legacy import convert_published
from steve1.data.generate import generate

PLAYER = '''
import time
from types import SimpleNamespace
import numpy as np
from steve1.base.actions import to_rows

def slow(seed, n_steps, size, only=None):
    time.sleep(.05)
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 255, (n_steps//20+1,*size,3), dtype=np.uint8), 20, 0)[:n_steps]
    return SimpleNamespace(frames=frames, rows=to_rows(dict(jump=rng.integers(0, 2, n_steps))), spans=[], events=[], masked=[], arena='nowhere')
'''
RUN = "from steve1.data.generate import generate\nif __name__ == '__main__': generate({folder!r}, 24, n_steps=120, size=(32,32), play='slow_player:slow')\n"

@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    "A data root of its own, for caches"
    monkeypatch.setenv('STEVE1_DATA', str(tmp_path/'root'))

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
    for a,b in zip(list_episodes(folder), list_episodes(tmp_path/'whole')):
        assert validate_episode(a).meta == validate_episode(b).meta
    assert not list(folder.glob('.tmp-*'))

@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs /proc to find the worker')
def test_a_worker_ends_with_its_leader(tmp_path, env):
    "A killed generation leaves no worker behind that writes on"
    (tmp_path/'slow_player.py').write_text(PLAYER.replace('sleep(.05)', 'sleep(60)'))
    p, workers, end = start(tmp_path, env, tmp_path/'d'), [], time.monotonic()+30
    while not workers and time.monotonic() < end:
        time.sleep(.1)
        children = Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()
        workers = [int(c) for c in children if b'spawn_main' in Path(f'/proc/{c}/cmdline').read_bytes()]
    time.sleep(2)                                                     # the worker is in the middle of its job
    p.send_signal(signal.SIGKILL); p.wait()
    def runs(pid):
        try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] not in 'ZX'
        except OSError: return False
    end = time.monotonic()+10
    while any(map(runs, workers)) and time.monotonic() < end: time.sleep(.05)
    assert workers and not any(map(runs, workers))

def test_what_is_cleared_cannot_appear(tmp_path, monkeypatch):
    "A writer that is cleared away under way cannot make its episode visible, however far the clearing has come"
    from steve1.base import files
    seen, remove = [], files._remove
    monkeypatch.setattr(files, '_remove', lambda p: (seen.append(writer.dir.exists()), remove(p)))
    with pytest.raises(OSError):
        with EpisodeWriter(tmp_path/'d'/'a', (32,32)) as writer:
            writer.add_many(np.zeros((20,32,32,3), np.uint8), dict(jump=np.zeros(20, int)))
            with files.sole_writer(tmp_path/'d'): pass
    assert seen[0] is False and not (tmp_path/'d'/'a').exists()

def test_killed_worker_costs_one_episode(tmp_path, env):
    "A worker process that is killed takes down its episode alone"
    folder = tmp_path/'d'
    p = start(tmp_path, env, folder)
    children = Path(f'/proc/{p.pid}/task/{p.pid}/children')
    if not children.exists():
        p.kill(); pytest.skip('needs Linux to find the worker')
    end = time.monotonic()+30
    while not list(folder.glob('0*')) and time.monotonic() < end: time.sleep(.02)
    spawned = [int(c) for c in children.read_text().split() if b'spawn_main' in Path(f'/proc/{c}/cmdline').read_bytes()]
    os.kill(spawned[-1], signal.SIGKILL)
    assert p.wait(timeout=60) == 0
    assert 23 <= len(list_episodes(folder)) <= 24
    for e in list_episodes(folder): validate_episode(e)

def record(path, n=80):
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, (32,32)) as w:
        w.add_many(rng.integers(0, 255, (n,32,32,3), dtype=np.uint8), dict(jump=rng.integers(0, 2, n)))
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
    else:
        f.write_bytes({'empty':b'', 'cut':data[:len(data)//2],
            'garbage':np.random.default_rng(1).bytes(len(data))}[how])
    with pytest.raises(EpisodeError) as e:
        stream = ChunkStream([tmp_path/'bad', tmp_path/'good'], DataConfig(T=16, max_gap=30), batch=2)
        for i in range(8): stream.batch(i)
    assert 'bad' in str(e.value) and name in str(e.value) and ('make' in str(e.value)
        or 'embed_episode' in str(e.value))

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

# --- the published code's folders

PUBLISHED = repo_root()/'tests'/'golden'/'episode_sample'
CFG = DataConfig(T=16, max_gap=30)

@pytest.mark.parametrize('name', ['frames.mp4', 'actions.pkl', 'embeds_attn.pkl', 'metadata.json', 'len.txt'])
@pytest.mark.parametrize('how', ['missing', 'empty', 'cut', 'garbage'])
def test_damage_to_a_published_folder_is_named(tmp_path, name, how):
    "Read in place, a damaged published folder stops training with its name too"
    shutil.copytree(PUBLISHED, tmp_path/'bad')
    f = tmp_path/'bad'/name
    data = f.read_bytes()
    if how == 'missing': f.unlink()
    else:
        f.write_bytes({'empty':b'', 'cut':data[:len(data)//2],
            'garbage':np.random.default_rng(1).bytes(len(data))}[how])
    if (name, how) == ('len.txt', 'cut'):
        validate_episode(tmp_path/'bad')
        assert Episode(tmp_path/'bad').n == 9
        return # '9' of '96': shorter, and whole
    with pytest.raises(EpisodeError) as e:
        stream = ChunkStream([tmp_path/'bad', PUBLISHED], CFG, batch=2)
        for i in range(8): stream.batch(i)
    assert 'bad' in str(e.value) and 'again' in str(e.value)

def test_random_damage_to_pickles_never_runs_or_crashes(tmp_path):
    "Whatever stands in a pickle, the reader gives data or an EpisodeError"
    shutil.copytree(PUBLISHED, tmp_path/'e')
    f, rng = tmp_path/'e'/'actions.pkl', random.Random(0)
    data = f.read_bytes()
    for _ in range(60):
        b = bytearray(data)
        for _ in range(3): b[rng.randrange(len(b))] = rng.randrange(256)
        f.write_bytes(bytes(b))
        try: assert len(Episode(tmp_path/'e').actions) == 96
        except EpisodeError: pass

CONVERT = "from steve1.data.inspect import episode_cli\nimport sys\nif __name__ == '__main__': episode_cli(['convert', *sys.argv[1:3]])\n"

def test_killed_conversion_resumes(tmp_path, env):
    "Killed at random moments, a conversion shows whole episodes only and ends up as if undisturbed"
    for i in range(16): shutil.copytree(PUBLISHED, tmp_path/'src'/f'{i:02d}')
    # their videos are encoded anew, which takes time
    for i in range(0, 16, 2): (tmp_path/'src'/f'{i:02d}'/'len.txt').write_text('90')
    (tmp_path/'run.py').write_text(CONVERT)
    run, dst, rng = [sys.executable, str(tmp_path/'run.py'), str(tmp_path/'src'),
        str(tmp_path/'dst')], tmp_path/'dst', random.Random(0)
    killed = 0
    for k in range(4):
        p, end = subprocess.Popen(run, env=env, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL), time.monotonic()+30
        while len(list(dst.glob('[0-9]*'))) <= 3*k and p.poll() is None and time.monotonic() < end: time.sleep(.002)
        time.sleep(rng.uniform(0, .02))
        killed += p.poll() is None
        p.send_signal(signal.SIGKILL); p.wait()
        for e in dst.glob('[0-9]*'): validate_episode(e)
    assert killed >= 3
    assert subprocess.run(run, env=env, stdout=subprocess.DEVNULL, timeout=60).returncode == 0
    assert [p.name for p in list_episodes(dst)] == [f'{i:02d}' for i in range(16)]
    for e in (dst/'03', dst/'04'):
        alone = validate_episode(convert_published(tmp_path/'src'/e.name, tmp_path/'alone'/e.name))
        assert validate_episode(e).meta == alone.meta

# --- the command

def test_validate_command_exits_non_zero(tmp_path, env):
    "Every fault of a dataset stands in the table, and the exit code says so; workers or not"
    for n in 'abc':
        record(tmp_path/'d'/n)
        (tmp_path/'d'/n/'embeds.npy').unlink() # it has no checksum
    (tmp_path/'run.py').write_text("from steve1.data.inspect import episode_cli\nif __name__ == '__main__': "
        "episode_cli()\n")
    cmd = [sys.executable, str(tmp_path/'run.py'), 'validate', str(tmp_path/'d')]
    r = subprocess.run(cmd, env=env, capture_output=True, text=True)
    assert r.returncode == 0 and '3 episodes, 0 faulty' in r.stdout, r.stdout+r.stderr
    (tmp_path/'d'/'b'/'frames.mp4').write_bytes(b'not a video')
    (tmp_path/'d'/'c'/'metadata.json').unlink()
    r = subprocess.run(cmd+['--workers', '1'], env=env, capture_output=True, text=True)
    assert r.returncode == 1 and '3 episodes, 2 faulty' in r.stdout, r.stdout+r.stderr
    assert 'is no readable video' in r.stdout and 'has no metadata.json' in r.stdout

# --- behind an address

def test_broken_connection_leaves_no_half_file(tmp_path, monkeypatch):
    "A transfer that breaks, or ends early without saying so, leaves nothing behind, and the next try succeeds"
    record(tmp_path/'play'/'000000')
    fs = fsspec.filesystem('memory')
    fs.put(str(tmp_path/'play'), '/faults/play', recursive=True)
    try:
        ep = list_episodes('memory://faults/play')[0]
        whole = type(fs).get_file
        def breaks(self, src, dst, **kw):
            Path(dst).write_bytes(b'half')
            raise ConnectionError('reset by peer')
        def ends(self, src, dst, **kw): Path(dst).write_bytes(self.cat_file(src)[:-1])
        for bad,text in ((breaks, 'reset by peer'), (ends, 'arrived damaged')):
            monkeypatch.setattr(type(fs), 'get_file', bad)
            with pytest.raises(EpisodeError, match=text): ChunkStream([ep], CFG, batch=1).batch(0)
            assert {p.name for p in ep.iterdir()} == {'.origin.json', 'metadata.json'}
        monkeypatch.setattr(type(fs), 'get_file', whole)
        far, near = (ChunkStream([p], CFG, batch=1).batch(1) for p in (ep, tmp_path/'play'/'000000'))
        assert all((far[k] == near[k]).all() for k in far if k != 'episode')
    finally: fs.rm('/faults', recursive=True)

# --- long recordings, workers

MEASURE = '''
import sys, numpy as np
from steve1.base.actions import noop
from steve1.dataset import ChunkStream, DataConfig
from steve1.episodes import EpisodeWriter
def mb(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))/1024
path, n = sys.argv[1], 20_000
block = np.random.default_rng(0).integers(0, 255, (8,32,32,3), dtype=np.uint8).repeat(25, 0)
used = []
with EpisodeWriter(path, (32,32)) as w:
    for i in range(n//200): w.add_many(block, dict(jump=np.zeros(200, int))); used.append(mb())
    e = np.zeros((n,4), np.float16); e[:15] = np.nan; w.add_embeds(e, 'none')
print('write', used[9], used[-1])
stream = ChunkStream([path], DataConfig(T=640, max_gap=200), batch=1)
used = []
for i in range(60): stream.batch(i); used.append(mb())
print('read', used[5], used[-1])
'''

@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs Linux to measure memory')
def test_memory_is_flat_over_a_long_recording(tmp_path, env):
    "Writing and reading 20,000 frames takes as much memory at the end as after a tenth"
    out = subprocess.run([sys.executable, '-c', MEASURE, str(tmp_path/'long')], env=env, capture_output=True,
        text=True, check=True).stdout
    for line in out.splitlines():
        what, early, late = line.split()
        assert float(late)-float(early) < 12, f'{what}: {early} MB, then {late} MB' # 20,000 frames are 61 MB
    assert out.count('\n') == 2

def test_fault_in_a_worker_is_named(tmp_path):
    "A worker process that meets a damaged episode says which"
    record(tmp_path/'bad')
    (tmp_path/'bad'/'frames.mp4').write_bytes(b'')
    with pytest.raises(EpisodeError, match='bad.frames.mp4'):
        next(iter(ChunkStream([tmp_path/'bad'], CFG, batch=2).batches(workers=2)))

# --- places that are only read

READ_ONLY = '''
import os, sys
from pathlib import Path
import numpy as np
from steve1.dataset import ChunkStream, DataConfig
from steve1.episodes import Episode, find_episodes, list_episodes, validate_episode
from steve1.data.embed import is_embedded
from steve1.data.foreign import EpisodeIndex
from steve1.data.inspect import episode_cli
from steve1.data.sampling import make_sampling
folder, frozen = Path(sys.argv[1]), [os.path.abspath(p) for p in sys.argv[1:]]
def refuse(event, args):
    "A file system that is mounted read-only, for everything below the frozen folders"
    writes = event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY|os.O_RDWR|os.O_CREAT)
    if not writes and event not in ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.link', 'os.symlink'): return
    for p in args[:2]:
        if isinstance(p, (str, bytes, os.PathLike)) and any(os.path.abspath(os.fsdecode(p)).startswith(f) for f in frozen):
            raise OSError(30, 'Read-only file system', os.fsdecode(p))
sys.addaudithook(refuse)
paths = list_episodes(folder)
for p in paths:
    ep = validate_episode(p)
    ep.frames(0, 4), ep.actions, ep.embeds, ep.loss_mask, ep.spans, is_embedded(p, 'x')
stream = ChunkStream(paths, DataConfig(T=16, max_gap=30), batch=2)
for i in range(3): stream.batch(i)
episode_cli(['validate', str(folder)]); episode_cli(['info', str(folder)])
assert len(EpisodeIndex.of(folder)) == len(paths)
if len(sys.argv) == 2: make_sampling('frozen', [str(folder)])
'''

@pytest.mark.parametrize('root_too', [False, True])
def test_a_read_only_dataset_can_be_read(tmp_path, env, root_too):
    "Listing, checking, sampling and training write nothing into the dataset; without a writable cache it goes on from memory"
    for n in 'ab':
        with EpisodeWriter(tmp_path/'e'/n, (128,128)) as w:
            w.add_many(np.zeros((80,128,128,3), np.uint8), dict(jump=np.ones(80, int)))
            e = np.zeros((80,512), np.float16)
            e[:15] = np.nan; w.add_embeds(e, 'x')
    shutil.copytree(PUBLISHED, tmp_path/'e'/'c')
    frozen = [str(tmp_path/'e')] + [os.environ['STEVE1_DATA']]*root_too
    r = subprocess.run([sys.executable, '-c', READ_ONLY, *frozen], env=env, capture_output=True, text=True)
    assert r.returncode == 0 and '3 episodes, 0 faulty' in r.stdout, r.stdout+r.stderr[-1500:]
