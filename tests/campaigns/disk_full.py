"""A disk that becomes full at any byte of any save: an error that names the disk, nothing half done, and a whole result once there is room"""
import functools, http.server, json, os, shutil, subprocess, threading
import numpy as np, torch, torch.utils.tensorboard
import harness
from steve1.episodes import Episode, EpisodeWriter, list_episodes, validate_episode

LIMIT = 600.

# --- writers: each is given the folder of materials and the folder to write

def episode(src, out):
    rng = np.random.default_rng(0)
    with EpisodeWriter(out/'e', (64,64), source='toy') as w:
        w.add_many(np.repeat(rng.integers(0, 255, (8,64,64,3), dtype=np.uint8), 8, 0), dict(jump=np.arange(64)%2))
        embeds = rng.standard_normal((64,16)); embeds[:15] = np.nan
        w.add_embeds(embeds, 'x')

def embed(src, out):
    from steve1.data.embed import embed_episodes
    if not (out/'d'/'e').exists():
        try: shutil.copytree(src/'short', out/'d'/'e')
        except (OSError, shutil.Error):
            shutil.rmtree(out/'d', ignore_errors=True)
            os._exit(9)      # no room for what comes before
    embed_episodes([out/'d'/'e'], str(src/'system'/'mineclip.safetensors'))

def film(src, out):
    from steve1.base.files import atomic_path
    from steve1.base.video import VideoWriter
    rng = np.random.default_rng(0)
    with atomic_path(out/'film.mp4') as p:
        w = VideoWriter(p, (90,160))
        w.add(rng.integers(0, 255, (40,90,160,3), dtype=np.uint8))
        w.close()

def sheet(src, out):
    from steve1.base.overlay import save_image
    save_image(out/'sheet.png', np.random.default_rng(0).integers(0, 255, (200,300,3), dtype=np.uint8))

def download(src, out):
    import steve1.base.downloads as d
    data = np.random.default_rng(0).bytes(200_000)
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            start = int((self.headers.get('Range') or 'bytes=0-')[6:].split('-')[0])
            self.send_response(206 if start else 200)
            if start: self.send_header('Content-Range', f'bytes {start}-{len(data)-1}/{len(data)}')
            self.send_header('Content-Length', str(len(data)-start))
            self.end_headers()
            try: self.wfile.write(data[start:])
            except OSError: pass
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    d._pause = lambda *a: .01
    d.download(f'http://127.0.0.1:{server.server_port}/x', out/'x.bin', size=len(data), retries=2, timeout=3)

def rollouts(src, out):
    from steve1.rollout import RolloutConfig, run_rollouts
    harness.set_data(out)
    run_rollouts(RolloutConfig(('chop a tree',), 'r', (5,), 20, height=90, weights=str(src/'system')))

def session(src, out):
    from steve1.acting.goals import System
    from steve1.acting.session import Session
    s = Session(System.load(src/'system'), size=(90,160), arena='plains')
    try:
        s.record(out/'film.mp4')
        for _ in range(20): s.step()
        s.save()
    finally: s.close()

def train(src, out, **kw):
    from steve1.training.recipe import TrainConfig
    from steve1.train import train
    harness.set_data(out)
    for k in ('datasets', 'samplings'):
        if not (out/k).is_symlink(): (out/k).symlink_to(src/'toy'/k)
    train(TrainConfig.preset('tiny', n_frames=6*64, save_every=2*64, log_every=1, val_every=3*64,
        **kw).replace(name='t'))

def features(src, out): train(src, out, freeze=('cnn',))

def prior(src, out):
    from steve1.prior import Prior, PriorConfig
    Prior(PriorConfig.preset('tiny')).save(out/'prior.safetensors')

def policy(src, out):
    from steve1.policy import Policy, PolicyConfig
    Policy(PolicyConfig.preset('tiny')).save(out/'policy.safetensors')

def official(src, out):
    from steve1.prior import Prior, PriorConfig
    Prior(PriorConfig.preset('tiny')).to_official(out/'prior.pt')

def pretrained(src, out):
    from steve1.prior import Prior, PriorConfig
    Prior(PriorConfig.preset('tiny')).save_pretrained(out/'f')

def convert(src, out):
    from steve1.models.published import convert_checkpoint
    convert_checkpoint(src/'system'/'prior.safetensors', out/'prior.pt')

def sampling(src, out):
    from steve1.data.sampling import make_sampling
    harness.set_data(out)
    make_sampling('s', [str(src/'toy'/'datasets'/'tiny')], .25)

def ledger(src, out):
    from steve1.data.collect import Ledger
    book = Ledger(out/'ledger.jsonl')
    for i in range(60):
        if f'name{i}' not in book.last: book.add(f'name{i}', 'broken', 'x'*200)

def index(src, out):
    from steve1.data.foreign import EpisodeIndex
    harness.set_data(out)
    EpisodeIndex.of(src/'toy'/'datasets'/'tiny')

def recordings(src, out):
    from steve1.data.importing import RecordingConfig, convert_recordings
    table = convert_recordings([src/'mine'], out/'d', RecordingConfig(size=(64,64)),
        str(src/'system'/'mineclip.safetensors'), workers=0)
    if 'reason' in table and table.reason.notna().any(): raise RuntimeError(table.reason.dropna().iloc[0])

def contractor(src, out):
    from steve1.data.contractor import ContractorConfig, convert_contractor
    from steve1.mineclip import MineCLIP
    convert_contractor(src/'con'/'rec.mp4', src/'con'/'rec.jsonl', out/'e', ContractorConfig(size=(64,64)),
        MineCLIP.load(src/'system'/'mineclip.safetensors'))

def legacy(src, out):
    from steve1.data.legacy import convert_published
    convert_published(harness.ROOT/'tests'/'golden'/'episode_sample', out/'e')

def mapped(src, out):
    harness.set_data(out)
    Episode(harness.ROOT/'tests'/'golden'/'episode_sample').embeds

def lerobot(src, out):
    from steve1.data.lerobot import export_lerobot
    if not (out/'lr').exists(): export_lerobot([src/'short'], out/'lr')

WRITERS = dict(episode=episode, embed=embed, film=film, sheet=sheet, download=download, rollouts=rollouts,
    session=session, train=train, features=features,
    prior=prior, policy=policy, official=official, pretrained=pretrained, convert=convert, sampling=sampling,
        ledger=ledger, index=index, recordings=recordings,
    contractor=contractor, legacy=legacy, mapped=mapped, lerobot=lerobot)
CACHES = 'index', 'mapped'  # a cache that cannot be stored is no error
ONCE = 'episode', 'contractor', 'legacy' # what is there is not written again: after a success there is no second try

def write(name, src, out):
    torch.set_num_threads(1); torch.manual_seed(0)
    WRITERS[name](src, out)

# --- materials

@functools.cache
def materials():
    from steve1.acting.goals import System
    from steve1.base.actions import KEYS
    from steve1.data.contractor import write_contractor
    from steve1.base.video import VideoWriter
    src = harness.campaign_folder()/'src'
    if (src/'ready').exists(): return src
    shutil.rmtree(src, ignore_errors=True)
    harness.toy_data(src/'toy'); System.random(src/'system')
    ep = Episode(list_episodes(harness.SAMPLE)[0])
    with EpisodeWriter(src/'short', ep.size, source='toy') as w: w.add_many(ep.frames(0, 60), ep.actions[:60])
    write_contractor(ep, src/'con'/'rec', size=(90,160), stop=40)
    (folder := src/'mine'/'r0').mkdir(parents=True)
    w = VideoWriter(folder/'video.mp4', (64,64))
    w.add(ep.frames(0, 40)); w.close()
    lines = [json.dumps({k:int(r[k]) for k in KEYS} | dict(camera=[float(x) for x in r['camera']]))
        for r in ep.actions[:40]]
    (folder/'actions.jsonl').write_text('\n'.join(lines)+'\n')
    (src/'ready').touch()
    return src

VARIES = ('ledger.jsonl', 'recordings.jsonl', 'events.out', 'metrics.jsonl', '.lock', 'main.pt', 'rank0.pt', 'manifest.json',
    '.safetensors', 'README.md', 'index/', 'train.log', 'summary', 'metrics.csv', '.tmp-', '.pt')
def report(path):
    "A report; an episode that was made before the disk was full is 'there' for the second try"
    return path.read_text().replace('"state": "there"', '"state": "made"')

def files(out):
    "What must be there: files by content, a ledger by its lines that are whole, a report but for that state"
    from steve1.data.collect import Ledger
    ledger = {'in the ledger':sorted(Ledger(p).last)} if (p := out/'ledger.jsonl').exists() else {}
    reports = {p.name:report(p) for p in out.rglob('recordings.jsonl')}
    return harness.tree(out, lambda rel: any(v in rel.as_posix() for v in VARIES)) | ledger | reports

@functools.cache
def whole(name):
    "(files of a writer with room, bytes in all, bytes of the largest)"
    room = harness.campaign_folder()/'room'
    harness.retry(room); room.mkdir()
    child = harness.fork(write, name, materials(), room)
    assert child.wait(400) == 0, (name, child.text()[-2000:])
    sizes = [p.stat().st_size for p in room.rglob('*') if p.is_file() and not p.is_symlink()]
    return files(room), sum(sizes), max(sizes, default=0)

# --- a disk of a given size

@functools.cache
def can_mount():
    at = harness.campaign_folder()/'probe'
    at.mkdir(exist_ok=True)
    ok = os.geteuid() == 0 and not subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', at],
        capture_output=True).returncode
    if ok: subprocess.run(['umount', '-l', at], check=True)
    return ok

def broken(out):
    "Files that can be seen and cannot be read whole"
    from steve1.base.checkpoints import load_tensors
    from steve1.base.untrusted import safe_torch_load
    from steve1.base.video import VideoReader
    import cv2, yaml, pyarrow.parquet
    readers = {'.safetensors':load_tensors, '.pt':safe_torch_load, '.npy':np.load,
        '.json':lambda p: json.loads(p.read_text()),
        '.mp4':lambda p: (v := VideoReader(p)).read(0, v.stream.frames or 1),
            '.parquet':pyarrow.parquet.read_table, '.yaml':lambda p: yaml.safe_load(p.read_text()) or 1/0}
    bad = []
    for p in out.rglob('*'):
        rel = p.relative_to(out)
        if not p.is_file() or any(x.startswith('.') or x in ('state.new', 'datasets', 'samplings', 'logs')
            for x in rel.parts):
            continue
        try:
            if p.suffix in readers: readers[p.suffix](p)
            elif p.suffix == '.png': assert cv2.imread(str(p)) is not None, 'no picture'
            if p.name == 'metadata.json' and (p.parent/'frames.mp4').exists() and p.parent != out/'d'/'e':
                validate_episode(p.parent)
        except Exception as e: bad.append(f'{rel} ({type(e).__name__}: {str(e)[-120:]})')
    return bad

def cases(rng):
    while True:
        for name in rng.sample(list(WRITERS), len(WRITERS)):
            yield dict(writer=name, how=rng.choice(('tmpfs', 'limit')), share=round(rng.uniform(0, 1.05), 5))

def run(case):
    name, src = case['writer'], materials()
    want, total, largest = whole(name)
    how = case['how'] if can_mount() else 'limit'
    disk = harness.case_folder()/'disk'
    disk.mkdir()
    if how == 'tmpfs':
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f"size={max(4096, int(case['share']*(total*1.2+8192)))}",
            'none', disk], check=True)
    try:
        return attempt(name, src, disk, want, dict(file_size=int(case['share']*largest)) if how == 'limit' else {}, how)
    finally:
        if how == 'tmpfs': subprocess.run(['umount', '-l', disk], check=True)

def attempt(name, src, disk, want, limit, how):
    child = harness.fork(write, name, src, disk, **limit)
    status = child.wait(250)
    if status == 9: return 'ok'
    if status not in (0, 1):
        return f"{'hang' if status == 'hang' else 'crash'}: {name} ended with {status}: {child.last()}"
    said, bad = child.last(), broken(disk)
    if bad: return f"{'half done' if status else 'silent'}: {name}: {bad[:2]} after {said!r}"
    if status == 0 and name not in CACHES and (diff := harness.difference(want, files(disk))):
        return f'silent: {name} lacks {diff[:3]}'
    if status and not ('free on its disk' in said or 'are free on' in said): return f'unclear: {name}: {said}'
    # a download goes on from its part
    left = [p for p in harness.temporary(disk) if name != 'download' or not p.endswith(('.part', '.note'))]
    if left: return f'leftover: {name}: {left[:3]} after {said!r}'
    if status == 0 and name in ONCE: return 'ok'
    if how == 'tmpfs': subprocess.run(['mount', '-o', 'remount,size=1g', disk], check=True)
    child = harness.fork(write, name, src, disk)
    if status := child.wait(250): return f'no second try: {name} ended with {status}: {child.last()}'
    if diff := harness.difference(want, files(disk)): return f'differs: {name}: {diff[:3]} once there is room'
    if (bad := broken(disk)) or (bad := harness.temporary(disk)):
        return f'leftover: {name}: {bad[:2]} once there is room'
    return 'ok'
