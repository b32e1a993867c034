"Foreign datasets: thousands of folders in seconds, links, BASALT from a server, an export that strangers can read, commands"
import json, os, shutil, signal, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest
from steve1.config import repo_root
from steve1.data.collect import Ledger
from steve1.data.contractor import write_contractor
from steve1.episodes import Episode, EpisodeWriter, list_episodes, validate_episode
from steve1.base.video import VideoError, VideoReader
from steve1.data.lerobot import LeRobotFormat, export_lerobot
from steve1.data.basalt import BASALT_TASKS, BasaltConfig, collect_basalt
from steve1.data import foreign
from steve1.data.foreign import EpisodeIndex, link_episodes
from steve1.data.sampling import make_sampling, read_sampling

SAMPLE, N = repo_root()/'tests'/'golden'/'episode_sample', 5000
PARTS = sorted(p.name for p in SAMPLE.iterdir())

@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch): monkeypatch.setenv('STEVE1_DATA', str(tmp_path/'data'))

def fill(folder, n):
    "n published episodes that share one copy of the sample's files"
    one = Path(shutil.copytree(SAMPLE, folder.parent/'one'))
    for i in range(n):
        (d := folder/f'{i:05d}').mkdir(parents=True)
        for p in PARTS: os.link(one/p, d/p)
    return folder

def put(path, content):
    path.unlink(missing_ok=True); path.write_bytes(content)

def hurt(folder, n):
    "Every hundredth episode loses a file, has one emptied, or says a wrong length; name -> word that must be said"
    out = {}
    for j,i in enumerate(range(50, n, 100)):
        d, part = folder/f'{i:05d}', PARTS[j % len(PARTS)]
        if j % 3 == 0: (d/part).unlink(); out[d.name] = part
        elif j % 3 == 1: put(d/part, b''); out[d.name] = part
        else: put(d/'len.txt', b'%d' % (97+j)); out[d.name] = 'len.txt'
    return out

def command(tmp_path, *args, env=None, code=''):
    "`steve1_foreign` as a process"
    (tmp_path/'run.py').write_text(code + "\nfrom steve1.data.foreign import foreign_cli\nif __name__ == "
        "'__main__': foreign_cli()\n")
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(repo_root()), **(env or {}))
    return subprocess.run([sys.executable, str(tmp_path/'run.py'), *map(str, args)], env=env, capture_output=True,
        text=True, timeout=60)

def test_five_thousand(tmp_path, monkeypatch):
    "Each is looked at once, the broken ones are named, the second look is at changes alone"
    wrong, looks, inspect = hurt(fill(tmp_path/'many', N), N), [], foreign._inspect_episode
    def counted(folder, *args): looks.append(folder.name); return inspect(folder, *args)
    monkeypatch.setattr(foreign, '_inspect_episode', counted)
    index = EpisodeIndex.of(tmp_path/'many')
    assert sorted(looks) == [f'{i:05d}' for i in range(N)]
    assert len(index) == N and len(wrong) == N//100 and set(index.broken) == set(wrong)
    for name,word in wrong.items(): assert word in index.broken[name], (name, word, index.broken[name])
    assert index.hours == pytest.approx((N-N//100)*96/20/3600)
    looks.clear()
    assert EpisodeIndex.of(tmp_path/'many').entries == index.entries and not looks
    put(tmp_path/'many'/'00000'/'frames.mp4', b'')
    assert set(EpisodeIndex.of(tmp_path/'many').broken) == {'00000', *wrong} and looks == ['00000']
    # the kept one was brought up to date
    assert set(EpisodeIndex.load(tmp_path/'many').broken) == {'00000', *wrong}
    link_episodes(EpisodeIndex.of(tmp_path/'many'), 'linked')
    make_sampling('linked', 'linked', val_share=.1)
    train, val = read_sampling('linked')
    assert len(train)+len(val) == N-N//100-1
    # pytest would keep them for three sessions
    shutil.rmtree(tmp_path/'many')

def test_index_file(tmp_path):
    "A torn index, an older one, one that cannot be written to: made anew or done without"
    folder = fill(tmp_path/'few', 5)
    want = EpisodeIndex.of(folder).entries
    path = EpisodeIndex.file_of(folder)
    for content in (b'{"version":1,"ent', b'[]', json.dumps(dict(version=0, folder=str(folder),
        entries=[])).encode(), b'{"version":1}'):
        path.write_bytes(content)
        assert EpisodeIndex.load(folder).entries == {} and EpisodeIndex.of(folder).entries == want
        assert EpisodeIndex.load(folder).entries == want
    # nothing is written beside the episodes
    assert not list(path.parent.glob('.tmp-*')) and sorted(p.name for p in folder.iterdir()) == list(want)
    shutil.move(folder, tmp_path/'moved')
    assert EpisodeIndex.of(tmp_path/'moved').entries.keys() == want.keys()

def test_our_own_format(tmp_path):
    "Our episodes are indexed, too; one whose video is too short is named"
    src = list_episodes(repo_root()/'data'/'episodes'/'sample')[:2]
    for p in src: shutil.copytree(p, tmp_path/'ours'/p.name)
    index = EpisodeIndex.of(tmp_path/'ours')
    assert [index.entries[p.name].n for p in src] == [Episode(p).n for p in src] and not index.broken
    shutil.copyfile(src[1]/'frames.mp4', tmp_path/'ours'/src[0].name/'frames.mp4')
    assert f'has {Episode(src[1]).n} frames' in EpisodeIndex.of(tmp_path/'ours').broken[src[0].name]

def test_mp4_headers(tmp_path):
    "Any cut of a file is seen, and noise never ends in anything but a plain error"
    whole, cut, rng = (SAMPLE/'frames.mp4').read_bytes(), tmp_path/'cut.mp4', np.random.default_rng(0)
    for n in [1, 7, 15, 40, *rng.integers(41, len(whole), 40)]:
        cut.write_bytes(whole[:n])
        with pytest.raises(VideoError): VideoReader.count_frames(cut)
    for _ in range(300):
        b = bytearray(whole)
        # where the headers are
        b[rng.choice([rng.integers(64), rng.integers(len(b)-2000, len(b))])] = rng.integers(256)
        cut.write_bytes(bytes(b))
        try: VideoReader.count_frames(cut)
        except VideoError: pass

def test_links(tmp_path):
    "Links follow the index; a real episode is never touched"
    folder = fill(tmp_path/'some', 4)
    linked = link_episodes(EpisodeIndex.of(folder), 'some')
    put(folder/'00002'/'len.txt', b'')
    assert [p.name for p in list_episodes(link_episodes(EpisodeIndex.of(folder), 'some'))] == ['00000','00001','00003']
    p = command(tmp_path, 'index', folder, '--link', 'mine')
    assert p.returncode == 0 and '1 broken' in p.stdout and '3 episodes linked' in p.stdout, p.stdout+p.stderr
    p = subprocess.run([sys.executable, '-c', 'from steve1.data.inspect import episode_cli; '
        'episode_cli(["convert", "mine", "made"])'], capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=str(repo_root())), timeout=60)
    assert p.returncode == 0, p.stderr
    assert [validate_episode(e).n for e in list_episodes('made')] == [96]*3
    with pytest.raises(FileExistsError, match='no link'): link_episodes(EpisodeIndex.of(folder), 'made')
    assert linked.is_dir() and len(list(folder.iterdir())) == 4

@pytest.fixture
def site(tmp_path):
    "A server with five recordings of caves: two good, one without actions, one torn, one whose video is missing"
    root, sample = tmp_path/'site', [Episode(p) for p in list_episodes(repo_root()/'data'/'episodes'/'sample')]
    stem = 'data/find-cave/woozy-ruby-ostrich-fd20b12d36bf-20220726-18{:04d}'
    for i in range(5): write_contractor(sample[i], root/stem.format(i), (90,160), stop=48)
    (root/f'{stem.format(2)}.jsonl').unlink()
    (root/f'{stem.format(4)}.mp4').unlink()
    (p := root/f'{stem.format(3)}.jsonl').write_bytes(p.read_bytes()[:-40])
    p = root/f'{stem.format(0)}.jsonl'
    lines = [json.loads(l) for l in p.read_text().splitlines()]
    for l in lines: l['keyboard']['keys'] = [k for k in l['keyboard']['keys'] if 'escape' not in k]
    lines[40]['keyboard']['keys'] = ['key.keyboard.escape']
    lines[40]['isGuiOpen'] = False
    for l in lines[41:]:
        l['keyboard']['keys'] = []; l['isGuiOpen'] = True
    p.write_text(''.join(json.dumps({k:v for k,v in l.items() if k in ('mouse','keyboard','isGuiOpen',
        'isGuiInventory','hotbar','tick','milli')})+'\n' for l in lines))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=root))
    (root/'find-cave-Jul-28.json').write_text(json.dumps(dict(basedir=f'http://127.0.0.1:{server.server_port}/',
        relpaths=[stem.format(i)+'.mp4' for i in range(5)])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root
    server.shutdown(); server.server_close()

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

def test_basalt(site, tmp_path):
    "Two become episodes with the task's sentence, three are named with their reasons; a second call asks for nothing"
    p = command(tmp_path, 'basalt', site/'find-cave-Jul-28.json', '--out', 'caves', '--size', '64')
    assert p.returncode == 0 and '2 episodes made, 3 recordings set aside' in p.stdout, p.stdout+p.stderr
    first, second = map(validate_episode, list_episodes('caves'))
    prompt = BASALT_TASKS['find-cave'].prompt
    assert first.meta['basalt']['quit'] == 40 and first.n <= 40 and [tuple(e)
        for e in first.events] == [(first.n-1, prompt)]
    assert first.meta['recording']['dropped']['after leaving'] > 0
    assert [tuple(s) for s in second.spans] == [(0, second.n, prompt)] and not second.actions['ESC'].any()
    said = {n[-1]:what for n,(what,_) in Ledger(tmp_path/'data/datasets/caves/ledger.jsonl').last.items()}
    assert said == {'2':'missing', '3':'broken', '4':'missing'}
    p = command(tmp_path, 'basalt', site/'find-cave-Jul-28.json', '--out', 'caves', '--size', '64', '--dry_run')
    assert '3 of 5 recordings would be converted' in p.stdout, p.stdout+p.stderr
    assert collect_basalt(site/'find-cave-Jul-28.json', 'caves', BasaltConfig(size=(64,64), workers=0)) == 0
    with pytest.raises(ValueError, match='converted with'):
        collect_basalt(site/'find-cave-Jul-28.json', 'caves', BasaltConfig(size=(32,32), workers=0))
    with pytest.raises(ValueError, match='give one of'): collect_basalt(tmp_path, 'other')

def check_export(root, episodes, default='play'):
    "What a stranger sees, with pyarrow and a video reader alone"
    pq, pd = pytest.importorskip('pyarrow.parquet'), pytest.importorskip('pandas')
    info, stats = (json.loads((root/'meta'/f).read_text()) for f in ('info.json','stats.json'))
    rows, steps, tasks = (
        pq.read_table(root / 'meta' / 'episodes').to_pylist(),
        pq.read_table(root / 'data'),
        pd.read_parquet(root / 'meta' / 'tasks.parquet'),
    )
    assert info['codebase_version'] == 'v3.0' and info['total_frames'] == len(steps) == sum(e.n
        for e in episodes) and info['total_episodes'] == len(rows) == len(episodes)
    assert (
        set(steps.column_names) | {LeRobotFormat.POV} == set(info['features']) == set(stats)
        and info['features']['action']['names'] == LeRobotFormat.ACTION_NAMES
    )
    assert (
        steps['index'].to_pylist() == list(range(len(steps)))
        and str(steps.schema.field('action').type) == 'fixed_size_list<element: float>[25]'
    )
    for e,row in zip(episodes, rows):
        a, b = row['dataset_from_index'], row['dataset_to_index']
        part = steps.slice(a, b-a)
        assert np.array_equal(np.array(part['action'].to_pylist(), np.float32),
            LeRobotFormat.action_vectors(e.actions)) and part['imitate'].to_pylist() == e.loss_mask.tolist()
        assert [tasks.index[i] for i in part['task_index'].to_pylist()] == LeRobotFormat.step_tasks(e,
            default) and part['next.done'].to_pylist() == [False]*(e.n-1)+[True]
        at = round(row[f'videos/{LeRobotFormat.POV}/from_timestamp']*info['fps'])
        video = VideoReader(root/LeRobotFormat.VIDEO_PATH.format(video_key=LeRobotFormat.POV,
            chunk_index=row[f'videos/{LeRobotFormat.POV}/chunk_index'],
            file_index=row[f'videos/{LeRobotFormat.POV}/file_index']))
        assert np.array_equal(video.read(at, at+e.n), e.frames())
    x = np.array(steps['action'].to_pylist())
    for k,v in dict(mean=x.mean(0), std=x.std(0), min=x.min(0), max=x.max(0), count=[len(x)]).items():
        assert np.allclose(stats['action'][k], v)
    return info

def test_export(tmp_path):
    "One file, many files: the same steps, the same frames to the last bit"
    pytest.importorskip('pyarrow')
    eps = [Episode(p) for p in list_episodes(repo_root()/'data'/'episodes'/'sample')]
    check_export(export_lerobot([e.path for e in eps], tmp_path/'one'), eps)
    check_export(export_lerobot([e.path for e in eps[:4]], tmp_path/'many', video_mb=.5, data_mb=.05), eps[:4])
    assert (
        len(list((tmp_path / 'many').rglob('*.mp4'))) == 4
        and len(list((tmp_path / 'many' / 'data').rglob('*.parquet'))) > 1
    )

def test_lerobot_reads_it(tmp_path):
    "LeRobot's own library"
    pytest.importorskip('lerobot')
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    eps = [Episode(p) for p in list_episodes(repo_root()/'data'/'episodes'/'sample')]
    root = export_lerobot([e.path for e in eps], tmp_path/'mine', video_mb=1, data_mb=.1)
    window = {LeRobotFormat.POV:[-.05, 0], 'action':[0, .05]}
    ds = LeRobotDataset('me/play', root=root, video_backend='pyav', delta_timestamps=window)
    assert len(ds) == sum(e.n for e in eps) and ds.num_episodes == len(eps) and ds.fps == 20
    starts = np.cumsum([0]+[e.n for e in eps])
    for i in np.random.default_rng(0).integers(len(ds),
        size=40).tolist() + starts[:-1].tolist() + (starts[1:]-1).tolist():
        k = int(np.searchsorted(starts, i, side='right'))-1
        e, t, x = eps[k], i-int(starts[k]), ds[i]
        want, seen = LeRobotFormat.action_vectors(e.actions), x[LeRobotFormat.POV].numpy()
        assert np.array_equal(x['action'].numpy(),
            want[[t, min(t+1, e.n-1)]]) and x['task'] == LeRobotFormat.step_tasks(e, 'play')[t]
        assert x['action_is_pad'].tolist() == [False,
            t == e.n-1] and x[f'{LeRobotFormat.POV}_is_pad'].tolist() == [t == 0, False]
        assert np.abs(seen[1].transpose(1,2,0)*255 - e.frames(t, t+1)[0]).max() <= 2
    assert np.allclose(ds.meta.stats['action']['mean'], np.concatenate([LeRobotFormat.action_vectors(e.actions)
        for e in eps]).mean(0))

def test_a_killed_export_leaves_nothing(tmp_path):
    "What is there is whole"
    pytest.importorskip('pyarrow')
    code = "import os, steve1.data.lerobot as f\nold = f.LeRobotWriter.add\ndef add(self, ep, tmp):\n    old(self, ep, tmp)\n    if len(self.rows) == 3: os.kill(os.getpid(), 9)\nf.LeRobotWriter.add = add"
    sample = repo_root()/'data'/'episodes'/'sample'
    p = command(tmp_path, 'export', sample, tmp_path/'out', code=code)
    assert p.returncode == -signal.SIGKILL and not (tmp_path/'out').exists()
    p = command(tmp_path, 'export', sample, tmp_path/'out')
    assert p.returncode == 0, p.stderr
    check_export(tmp_path/'out', [Episode(q) for q in list_episodes(sample)])

def test_commands(tmp_path):
    "Help, wrong use and what is missing are told in a line"
    sample, no_arrow = repo_root()/'data'/'episodes'/'sample', "import sys\nsys.modules['pyarrow'] = None"
    assert 'LeRobot' in command(tmp_path, '--help').stdout
    for args,code,said in ((('export', sample), '', 'two'), (('index', tmp_path/'no'), '', 'no folder'),
        (('basalt', tmp_path), '', 'give one of'),
            (('export', sample, tmp_path/'out'), no_arrow, "[lerobot]'"), (('export', sample, tmp_path), '',
                'exists already')):
        p = command(tmp_path, *args, code=code)
        assert p.returncode and said in p.stderr.splitlines()[-1] and 'Traceback' not in p.stderr, (args, p.stderr)
    p = command(tmp_path, 'export', sample, tmp_path/'out', '--dry_run', code=no_arrow)
    assert p.returncode == 0 and '8 episodes' in p.stdout and not (tmp_path/'out').exists()
    folder = fill(tmp_path/'few', 3)
    put(folder/'00001'/'actions.pkl', b'')
    p = command(tmp_path, 'index', folder, '--dry_run')
    assert p.returncode == 1 and '00001: actions.pkl is empty' in p.stdout and not EpisodeIndex.file_of(folder).exists()

READERS = """
import sys
from steve1.data.foreign import EpisodeIndex
from steve1.data.sampling import read_sampling, sampling_summary
index = EpisodeIndex.of(sys.argv[1])
print(len(index.whole), [len(x) for x in read_sampling('mine')], len(sampling_summary(read_sampling('mine')[0])))
"""
def test_a_read_only_data_folder(tmp_path):
    "Reading works where nothing can be written; writing ends in one line that names the place"
    # root may write anywhere, until it may not
    drop = ['setpriv', '--bounding-set=-dac_override,-dac_read_search'] if os.geteuid() == 0 else []
    if drop and not shutil.which('setpriv'): pytest.skip('root, and no setpriv to give its rights up')
    folder, data = fill(tmp_path/'few', 4), tmp_path/'data'
    make_sampling('mine', str(folder), val_share=.3)
    EpisodeIndex.of(folder, save=False)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(repo_root()), STEVE1_DATA=str(data))
    run = lambda code, *args: subprocess.run([*drop, sys.executable, '-c', code, *map(str, args)], env=env,
        capture_output=True, text=True, timeout=60)
    cli = "import sys; from steve1.data.{0} import {1}_cli; {1}_cli(sys.argv[1:])".format
    (tmp_path/'ix.json').write_text(json.dumps(dict(basedir='http://127.0.0.1:9/', relpaths=['8.0/a'])))
    folders = [data, *(p for p in data.rglob('*') if p.is_dir())]
    for p in folders: p.chmod(0o555)
    try:
        got = run(READERS, folder)
        assert got.returncode == 0 and got.stdout.startswith('4 ['), got.stderr
        assert run(cli('collect', 'contractor'), tmp_path/'ix.json', '--status').returncode == 0
        for words in ((cli('sampling', 'sampling'), 'other', folder), (cli('collect', 'contractor'),
            tmp_path/'ix.json'),
                (cli('importing', 'recordings'), tmp_path, '--out', 'new'), (cli('foreign', 'foreign'), 'index',
                    folder, '--link', 'new')):
            got = run(*words)
            lines = got.stderr.strip().splitlines()
            assert (
                got.returncode == 1
                and 'Traceback' not in got.stderr
                and lines[-1].startswith('steve1_')
                and str(data) in lines[-1]
                or 'recording in' in lines[-1]
            ), got.stderr
    finally:
        for p in folders: p.chmod(0o755)

EVERY_COMMAND = """
import contextlib, importlib, io, sys
for line in sys.stdin.read().splitlines():
    where, *words = line.split()
    module, name = where.split(':')
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try: getattr(importlib.import_module(f'steve1.{module}'), name)(words); status = 0
        except SystemExit as e: status = e.code
        except BaseException as e: status = f'{type(e).__name__}: {e}'
    lines = [l for l in said.getvalue().splitlines() if l.startswith('steve1_')]
    print(where, status, len(lines), *lines[-1:], sep='\\t', flush=True)
"""
def test_every_command_in_a_read_only_data_folder(tmp_path):
    "What only reads works; what writes ends with one line that names the place"
    drop = ['setpriv', '--bounding-set=-dac_override,-dac_read_search'] if os.geteuid() == 0 else []
    if drop and not shutil.which('setpriv'): pytest.skip('root, and no setpriv to give its rights up')
    from steve1.acting.goals import System
    from steve1.policy import PolicyConfig
    data, cfg = tmp_path/'data', PolicyConfig.preset('tiny')
    System.random(system := data/'system')
    for name in ('fit/0', 'fit/1', 'bare/0'):
        with EpisodeWriter(data/'datasets'/name, cfg.image_size) as w:
            w.add_many(np.zeros((40,*cfg.image_size,3), np.uint8), dict(jump=np.ones(40, int)))
            if name != 'bare/0': w.add_embeds(np.where(np.arange(40)[:,None] < 15, np.nan, np.ones(cfg.d_goal)), 'x')
    make_sampling('mine', ['fit'], val_share=.5)
    reading = 'data.inspect:episode_cli info bare', 'data.inspect:episode_cli validate bare'
    writing = ('train:train_cli --preset tiny --sampling mine --name n --n_frames 640',
        f'data.embed:embed_cli bare --clip {system}/mineclip.safetensors --workers 0',
        'data.sampling:sampling_cli other fit',
        'models.published:download_cli attn.pth --mirror http://127.0.0.1:9/',
        f'rollout:rollout_cli dig --n_steps 2 --weights {system}',
        'data.generate:generate_cli new 1 --n_steps 20 --size 32 --workers 0',
        f'models.published:convert_cli {system}/prior.safetensors {data}/out.pt',
        f'data.foreign:foreign_cli export bare {data}/lerobot')
    folders = [data, *(p for p in data.rglob('*') if p.is_dir())]
    for p in folders: p.chmod(0o555)
    try: r = subprocess.run([*drop, sys.executable, '-W', 'ignore', '-c', EVERY_COMMAND], input='\n'.join(reading+writing),
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(repo_root())), capture_output=True, text=True)
    finally:
        for p in folders: p.chmod(0o755)
    rows = [l.split('\t') for l in r.stdout.splitlines()]
    assert len(rows) == len(reading+writing), r.stderr[-1500:]
    for line,(_, status, n, *said) in zip(reading+writing, rows):
        if line in reading: assert (status, n) == ('0','0'), (line, said)
        else: assert (status, n) == ('1','1') and 'Permission denied' in said[0] and str(data) in said[0], (line, said)
        assert 'on its disk' not in ''.join(said), (line, said)

def test_an_index_is_not_believed(tmp_path):
    "Names in a stored index that lead out of the folder, and folders that would fetch from an address, are not used"
    folder = fill(tmp_path/'some', 3)
    EpisodeIndex.of(folder)
    kept = json.loads(EpisodeIndex.file_of(folder).read_text())
    for name in ('../one', '/etc', '..', '.', 'a/b', '', 7):
        EpisodeIndex.file_of(folder).write_text(json.dumps(kept | dict(entries=[[name, *kept['entries'][0][1:]]])))
        assert not EpisodeIndex.load(folder).entries, name
    (folder/'00001'/'.origin.json').write_text(json.dumps(dict(address='https://host/x', files={'../../../x':3})))
    index = EpisodeIndex.of(folder)
    assert '.origin.json' in index.broken['00001'] and [p.name for p in index.whole] == ['00000','00002']
    assert [p.name for p in list_episodes(link_episodes(index, 'linked'))] == ['00000','00002']

def test_unknown_sampling(tmp_path):
    "One line that lists what there is, from the command that reads it"
    folder = fill(tmp_path/'few', 4)
    make_sampling('mine', str(folder), val_share=.3)
    for name,text in (('theirs', 'known: mine'), ('../mine', 'must be a folder below data/samplings')):
        with pytest.raises((FileNotFoundError, ValueError), match=text): read_sampling(name)
    code = "import sys; from steve1.train import train_cli; train_cli(sys.argv[1:])"
    got = subprocess.run([sys.executable, '-c', code, '--sampling', 'theirs'],
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(repo_root())), capture_output=True, text=True,
        timeout=60)
    assert got.returncode and 'Traceback' not in got.stderr and 'known: mine' in got.stderr, got.stderr
