"""Names in files and links in folders that lead out of the data root, devices, very long names: nothing outside is written or read"""
import hashlib, json, os, shutil, sys, warnings
from pathlib import Path
import harness
from harness import SAMPLE

LIMIT = 60.
NAMES = ('{up}', '{out}/absolute', '/etc/passwd', '/proc/kmsg', '/dev/zero', '/dev/stdin', '..', '.', '', '~',
    '~nobody/x', 'a/../../{up}', 'a\\..\\..\\x', 'C:\\x', 'a\0b',
    'a\nb', 'a\x7fb', 'a\u2028b', 'x'*250, 'x'*300, 'x'*5000, '\ud800', '.lock', 'frames.mp4/x', '$(touch x)',
        'a?b#c', '-rf', 'con', 'é'*130, '%2e%2e%2fx', ' ', '\u202eevil', 'memory://x/y',
    'file:///etc/passwd')

# --- what a stranger's folder may do: (root of the data, folder outside, the name) -> None

def episode(root, **facts):
    e = root/'datasets'/'d'/'e'
    shutil.copytree(SAMPLE/'500000', e)
    note = e/'metadata.json'
    note.write_text(json.dumps(json.loads(note.read_text()) | facts))
    return e

def look_at(e):
    "What one does with a dataset of someone else"
    from steve1.data.foreign import EpisodeIndex
    from steve1.data.inspect import episode_cli
    from steve1.dataset import ChunkStream, DataConfig
    from steve1.episodes import Episode
    def each():
        yield lambda: episode_cli(['validate', str(e.parent)])
        yield lambda: episode_cli(['list', str(e.parent)])
        yield lambda: Episode(e)._repr_html_()
        yield lambda: ChunkStream([e], DataConfig(T=16, max_gap=40), batch=1).batch(0)
        yield lambda: EpisodeIndex.of(e.parent)
    for f in each(): quiet(f)

def quiet(f):
    try: return f()
    except (ValueError, OSError, RuntimeError): pass
    except SystemExit: pass

def checksums(root, out, name):
    files = json.loads((SAMPLE/'500000'/'metadata.json').read_text())['files']
    look_at(episode(root, files=files | {name:hashlib.sha256(b'x').hexdigest()}))

def features(root, out, name):
    from steve1.policy import Policy, PolicyConfig
    from steve1.training.features import cache_features
    e = episode(root, files={'frames.mp4':name})
    quiet(lambda: cache_features(Policy(PolicyConfig.preset('tiny', image_size=(64,64))), [e]))

def origin(root, out, name):
    files = json.loads((SAMPLE/'500000'/'metadata.json').read_text())['files']
    e = episode(root, files=files | {name:hashlib.sha256(b'x').hexdigest()})
    for address in (f'local://{out}', f'file://{out}', 'memory://play/e', name):
        (e/'.origin.json').write_text(json.dumps(dict(address=address, files={name:1, 'frames.mp4':5})))
        (e/'frames.mp4').unlink(missing_ok=True)
        look_at(e)

def address(root, out, name):
    from steve1.episodes import Episode
    quiet(lambda: Episode(f'memory://play/{name}'))

def index(root, out, name):
    from steve1.data.collect import CollectConfig, Ledger, RecordingIndex, collect
    (root/'i.json').write_text(json.dumps(dict(basedir='http://127.0.0.1:9/', relpaths=['good', name, f'8.0/{name}'])))
    def run():
        found = RecordingIndex.read(root/'i.json').recordings
        collect(found, 'c', CollectConfig(workers=0, threads=1))
        Ledger(root/'datasets'/'c'/'ledger.jsonl')
    from steve1.data import collect as module
    # no waiting for a server
    real, module._fetch_one = module._fetch_one, lambda entry, raw, retries, keep: ('network',
        str(entry.raw_path(raw, '.mp4')))
    try: quiet(run)
    finally: module._fetch_one = real

def sampling(root, out, name):
    from steve1.data.sampling import make_sampling, read_sampling
    episode(root)
    quiet(lambda: make_sampling(name, 'd', .0))
    (root/'samplings').mkdir(exist_ok=True)
    (root/'samplings'/'s_train.txt').write_text(name, encoding='utf-8', errors='replace')
    (root/'samplings'/'s_val.txt').write_text('')
    # an absolute line is the user's own
    if not name.startswith(('/', '{', 'file:')): quiet(lambda: read_sampling('s'))

def run_name(root, out, name):
    from steve1.evaluate import EvalConfig
    from steve1.rollout import RolloutConfig
    from steve1.training.recipe import TrainConfig
    from steve1.training.runs import RunFolder
    for cls in (TrainConfig, RolloutConfig, EvalConfig):
        def begin():
            cfg = cls(name=name)
            if cls is TrainConfig: RunFolder(cfg.name).clear(cfg)
        quiet(begin)

def manifest(root, out, name):
    from steve1.training.runs import RunFolder
    (state := root/'runs'/'r'/'state').mkdir(parents=True)
    (state/'main.pt').write_bytes(b'x')
    (state/'manifest.json').write_text(json.dumps({'main.pt':hashlib.sha256(b'x').hexdigest(),
        name:hashlib.sha256(b'precious').hexdigest()}))
    quiet(RunFolder('r').find_state)

def recordings(root, out, name):
    from steve1.data.importing import convert_recordings
    from steve1.data.recordings import RecordingConfig
    (rec := root/'in'/'r').mkdir(parents=True)
    (rec/'video.mp4').write_text(f'ffconcat version 1.0\nfile {name}\n', errors='replace')
    (rec/'actions.jsonl').write_text('{"camera": [1, 0]}\n')
    quiet(lambda: convert_recordings([root/'in'], 'mine', RecordingConfig(size=(32,32)), workers=0))

def link(what):
    "A link to the file or folder outside, in place of something that is written"
    def make(root, out, name):
        from steve1.base.downloads import download
        from steve1.base.files import sole_writer
        from steve1.data.collect import Ledger
        from steve1.training.recipe import TrainConfig
        from steve1.training.runs import RunFolder
        at = root/what
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(out/('folder' if at.suffix == '' and at.name != '.lock' else 'victim'))
        folder = root/what.split('/')[0]/what.split('/')[1]
        if at.name == 'ledger.jsonl': quiet(lambda: Ledger(at).add('a', 'broken', 'x'))
        elif 'runs' in what: quiet(lambda: RunFolder('r').clear(TrainConfig(name='r')))
        elif 'dl' in what: quiet(lambda: download('http://127.0.0.1:9/x', root/'dl'/'one'/'x', retries=0, timeout=1))
        else:
            def write():
                with sole_writer(folder): pass
            quiet(write)
    return make

LINKS = (
    'datasets/d/.lock',
    'datasets/d/ledger.jsonl',
    'datasets/d/.ledger.jsonl.lock',
    'runs/r/config.yaml',
    'runs/r/metrics.jsonl',
    'runs/r/logs',
    'runs/r/state',
    'datasets/d/.tmp-x',
    'dl/one/.tmp-x.part',
    'dl/one/.tmp-x.note',
)
WAYS = dict(checksums=checksums, features=features, origin=origin, address=address, index=index, sampling=sampling,
    run_name=run_name, manifest=manifest, recordings=recordings,
    **{f'link {w}':link(w) for w in LINKS})

# --- what is watched

WRITES = {'open':0, 'os.mkdir':0, 'os.rename':1, 'os.remove':0, 'os.rmdir':0, 'os.truncate':0, 'os.symlink':1,
    'os.link':1, 'os.chmod':0, 'shutil.rmtree':0}

def watch(root, out, seen):
    "Note every path outside the data root that is opened or changed"
    free = (
        str(root),
        str(harness.campaign_folder() / 'tmp'),
        sys.prefix,
        sys.base_prefix,
        str(harness.ROOT),
        '/usr',
        '/lib',
        '/proc/self',
        f'/proc/{os.getpid()}/stat', # when this process began, for the name of a temporary file
        '/proc/meminfo',
        '/proc/stat',
        '/proc/cpuinfo',
        '/sys',
        '/dev/null',
        '/dev/shm',
        '/dev/urandom',
    )
    on = [True]
    def hook(event, args):
        if not on[0] or event not in WRITES: return
        p = args[WRITES[event]] if len(args) > WRITES[event] else None
        if not isinstance(p, (str, bytes, os.PathLike)): return
        on[0] = False
        try:
            p = os.path.abspath(os.fsdecode(p))
            if not p.startswith(free) and not p.startswith(('/etc/localtime', '/etc/mime', '/etc/hosts',
                '/etc/resolv', '/etc/nsswitch', '/etc/host', '/etc/gai', str(Path.home()/'.cache'))):
                seen.append(f'{event} {p}')
        finally: on[0] = True
    sys.addaudithook(hook)
    return on

def child(case, root, out, said):
    warnings.simplefilter('ignore')
    os.chdir(root)
    seen = []
    name = case['name'].replace('{up}', os.path.relpath(out, root/'datasets'/'d'/'e')+'/stray').replace('{out}',
        str(out))
    on = watch(root, out, seen)
    try: WAYS[case['way']](root, out, name)
    finally: on[0] = False; said.write_text(json.dumps(seen[:5]))

def cases(rng):
    while True:
        for way in WAYS: yield dict(way=way, name=rng.choice(NAMES))

def run(case):
    here = harness.case_folder()
    root, out, said = here/'data', here/'outside', here/'seen.json'
    (root/'datasets').mkdir(parents=True)
    (out/'folder').mkdir(parents=True)
    (out/'victim').write_text('precious')
    (out/'folder'/'keep').write_text('precious')
    (out/'frames.mp4').write_text('x')
    before = harness.tree(out), {p.name for p in here.iterdir()}
    harness.set_data(root)
    import matplotlib.pyplot  # noqa: F401
    import steve1.evaluate, steve1.training.features, steve1.data.importing # noqa: F401  (once, not in each child)
    import steve1.data.inspect, steve1.data.foreign # noqa: F401
    p = harness.fork(child, case, root, out, said, memory=1500)
    status = p.wait(40)
    if harness.tree(out) != before[0] or {p.name for p in here.iterdir()}-{'seen.json'} != before[1]:
        return f"outside: {case['way']} changed {harness.difference(harness.tree(out), before[0])}"
    if status:
        return f"{'hang' if status == 'hang' else 'crash' if status < 0 else 'unclear'}: {case['way']}: {p.last()}"
    seen = json.loads(said.read_text())
    return f"outside: {case['way']}: {'; '.join(seen)}" if seen else 'ok'
