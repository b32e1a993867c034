"""Every data command killed at random with SIGKILL until it ends: whole episodes at any time, the files of an undisturbed run in the end"""
import functools, json, os, random, shutil, time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, torch
import harness
import steve1.data.embed, steve1.data.importing, steve1.data.generate # noqa: F401 - a child has them
import steve1.data.legacy, steve1.data.foreign, steve1.data.basalt # noqa: F401
from steve1.episodes import Episode, EpisodeError, clip_id, list_episodes, validate_episode

LIMIT = 600.
N = 48       # steps of a recording

# --- what the commands do; each is given the folder to write

def generate(root, out, case):
    from steve1.data.generate import generate
    generate(out, 10, n_steps=100, size=(32,32), play='_toyplay:play', workers=case['workers'])

def recordings(root, out, case):
    from steve1.data.importing import RecordingConfig, convert_recordings
    convert_recordings([root/'mine'], out, RecordingConfig(size=(64,64)), root/'clip0/mineclip.safetensors',
        workers=case['workers'])

def silent(root, out, case):
    from steve1.data.importing import RecordingConfig, convert_recordings
    convert_recordings([root/'silent'], out, RecordingConfig(size=(64,64)), idm=root/'idm.safetensors',
        workers=case['workers'])

def embed(root, out, case):
    from steve1.data.embed import embed_episodes
    embed_episodes(list_episodes(out), root/f"clip{case.get('clip', 0)}/mineclip.safetensors", case['workers'])

def contractor(root, out, case):
    from steve1.data.collect import CollectConfig, RecordingIndex, collect
    cfg = CollectConfig(raw=str(out)+'-raw', workers=case['workers'], threads=2, size=(64,64),
        clip=str(root/'clip0/mineclip.safetensors'))
    collect(RecordingIndex.read(root/'site'/'index.json').recordings, out, cfg)

def basalt(root, out, case):
    from steve1.data.basalt import BasaltConfig, collect_basalt
    cfg = BasaltConfig(raw=str(out)+'-raw', workers=case['workers'], threads=2, size=(64,64), task='find-cave',
        clip=str(root/'clip0/mineclip.safetensors'))
    collect_basalt(root/'site'/'index.json', out, cfg)

def legacy(root, out, case):
    from steve1.data.legacy import convert_all
    convert_all([(p, Path(out)/p.name) for p in sorted((root/'published').iterdir())], case['workers'])

def lerobot(root, out, case):
    from steve1.data.lerobot import export_lerobot
    export_lerobot(root/'emb', out, limit=3)

def foreign(root, out, case):
    from steve1.data.foreign import EpisodeIndex, link_episodes
    link_episodes(EpisodeIndex.of(root/'emb'), out)

def sampling(root, out, case):
    from steve1.data.sampling import make_sampling
    make_sampling('drawn', [root/'emb'] if case.get('clip') else [root/'bare'], .25)

COMMANDS = dict(generate=generate, recordings=recordings, silent=silent, embed=embed, contractor=contractor,
    basalt=basalt, legacy=legacy, lerobot=lerobot, foreign=foreign, sampling=sampling)
# have workers, which must end with their leader
LEADER = 'generate', 'recordings', 'silent', 'contractor', 'basalt', 'legacy', 'embed'

def do(what, root, out, case):
    torch.set_num_threads(1)
    COMMANDS[what](root, out, case)

# --- materials

class Site(SimpleHTTPRequestHandler):
    def log_message(self, *a): pass
    def copyfile(self, src, dst):
        try: super().copyfile(src, dst)
        except OSError: pass      # the caller was killed

def serve(folder, port_file):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Site, directory=str(folder)))
    server.daemon_threads = True
    port_file.with_suffix('.new').write_text(str(server.server_port))
    port_file.with_suffix('.new').rename(port_file)
    server.serve_forever()

def strip(path):
    "An episode without embeddings"
    meta = json.loads((path/'metadata.json').read_text())
    meta['files'].pop('embeds.npy', None)
    (path/'embeds.npy').unlink(missing_ok=True)
    Episode(path).folder.write_facts(meta | dict(mineclip=None))

def make_recordings(root, sample):
    from steve1.base.actions import KEYS
    from steve1.base.video import VideoWriter
    from steve1.data.contractor import write_contractor
    for i,ep in enumerate(sample):
        frames = ep.frames(0, N)
        for video in (root/'mine'/f'rec{i}'/'video.mp4', *([root/'silent'/f'walk{i}.mp4'] if i < 3 else [])):
            video.parent.mkdir(parents=True, exist_ok=True)
            w = VideoWriter(video, (64,64))
            w.add(frames); w.close()
        lines = [json.dumps({k:int(r[k]) for k in KEYS} | dict(camera=[float(x) for x in r['camera']]))
            for r in ep.actions[:N]]
        (root/'mine'/f'rec{i}'/'actions.jsonl').write_text('\n'.join(lines)+'\n')
        write_contractor(ep, root/'site'/'8.0'/f'play-{i}', size=(90,160), start=10, stop=10+N)

@functools.cache
def materials():
    "What is converted: recordings, videos, contractor files, published folders, episodes, two MineCLIPs, an IDM"
    from steve1.acting.goals import System
    from steve1.models.idm import IDM, IDMConfig
    root = harness.campaign_folder()/'materials'
    if (root/'ready').exists(): return harness.set_data(root/'data')and root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True); harness.set_data(root/'data')
    for i in (0, 1): System.random(root/f'clip{i}', i)
    torch.manual_seed(0)
    IDM(IDMConfig.preset('tiny')).save(root/'idm.safetensors')
    sample = [Episode(p) for p in list_episodes(harness.SAMPLE)][:4]
    make_recordings(root, sample)
    for i in range(4):
        shutil.copytree(harness.ROOT/'tests/golden/episode_sample', root/'published'/f'{i:02d}')
        if i%2: (root/'published'/f'{i:02d}'/'len.txt').write_text('90')
    for ep in sample: # short ones: an embedding takes seconds
        from steve1.episodes import EpisodeWriter
        with EpisodeWriter(root/'emb'/ep.path.name, ep.size, seed=1, source='toy') as w:
            w.add_many(ep.frames(0, 100), ep.actions[:100])
        shutil.copytree(root/'emb'/ep.path.name, root/'bare'/ep.path.name)
    relpaths = [f'8.0/play-{i}.mp4' for i in range(len(sample))]
    (root/'relpaths').write_text(json.dumps(relpaths))
    (root/'ready').touch()
    return root

@functools.cache
def server():
    "The process that serves contractor files"
    root = materials()
    (root/'port').unlink(missing_ok=True)
    child = harness.fork(serve, root/'site', root/'port', said=root/'server.txt')
    while not (root/'port').exists(): time.sleep(.01)
    index = dict(basedir=f"http://127.0.0.1:{(root/'port').read_text()}/",
        relpaths=json.loads((root/'relpaths').read_text()))
    (root/'site'/'index.json').write_text(json.dumps(index))
    return child

@functools.cache
def trainable():
    "The materials, and beside them what plays and trains: weights of a system, a sampling"
    from steve1.acting.goals import System
    root = materials()
    server()
    if not (root/'system').exists(): System.random(root/'system')
    if not (root/'data'/'samplings'/'tiny_val.txt').exists(): harness.toy_data(root/'data')
    harness.set_data(root/'data')
    return root

@functools.cache
def clips():
    "clip_id -> MineCLIP"
    from steve1.mineclip import MineCLIP
    models = [MineCLIP.load(materials()/f'clip{i}'/'mineclip.safetensors') for i in (0, 1)]
    return {clip_id(m):m for m in models}

# --- what must hold

def skip(rel):
    return rel.name in ('.lock', 'ledger.jsonl', '.ledger.jsonl.lock', 'recordings.jsonl') or harness.is_temporary(rel)

@functools.cache
def embedding(path, id):
    from steve1.data.embed import embed_segments
    from steve1.base.video import resize_frames
    ep, clip = Episode(path), clips()[id]
    return np.concatenate(list(embed_segments([resize_frames(ep.frames(), clip.image_size)],
        clip)))[15:].astype(np.float16)

def faults(what, out, root):
    "What is wrong with the episodes that can be seen"
    bad = []
    if what == 'sampling': return sampling_fault()
    if what in ('lerobot', 'foreign'): return bad
    for e in sorted(Path(out).glob('[!.]*/')):
        try: ep = validate_episode(e)
        except EpisodeError as err:
            again = what == 'embed' and 'makes it anew' in str(err)      # embeddings are missing, and it says so
            if not again: bad.append(f'{e.name}: {str(err)[:200]}')
            continue
        named = (ep.meta.get('mineclip') or {}).get('id')
        if what == 'embed' and named:
            if not np.allclose(np.asarray(ep.embeds[15:], np.float32), embedding(root/'bare'/e.name, named), atol=.02):
                bad.append(f'{e.name}: embeddings of another MineCLIP')
    return bad

def sampling_fault():
    "A sampling that can be read is one of the two that were drawn"
    from steve1.data.sampling import read_sampling
    try: train, val = read_sampling('drawn')
    except (FileNotFoundError, ValueError): return []
    return [] if {p.parent.name for p in train} == {p.parent.name for p in val} else ['train and val of two samplings']

def prepare(what, root, out):
    "What must be there before the command"
    harness.retry(out)
    harness.retry(Path(f'{out}-raw'))
    if what == 'embed': shutil.copytree(root/'bare', out)
    if what == 'sampling':
        for p in (root/'data'/'samplings').glob('drawn*'): p.unlink()
    if what == 'foreign': shutil.rmtree(root/'data'/'cache'/'index', ignore_errors=True)

def result(what, root, out):
    "The files of a finished command"
    if what == 'sampling': return harness.tree(root/'data'/'samplings')
    if what == 'foreign': return {p.name:os.readlink(p) for p in Path(out).iterdir()}
    return harness.tree(out, skip)

@functools.cache
def undisturbed(what, workers=0):
    root = materials(); server()
    out, t0 = root/'out'/f'{what}-whole', time.monotonic()
    prepare(what, root, out)
    child = harness.fork(do, what, root, out, dict(workers=workers))
    assert child.wait(400) == 0, (what, child.text()[-2000:])
    took = time.monotonic()-t0
    return result(what, root, out), took

def wait_to_strike(child, out, rng, most):
    "Wait for a random time; half of the time until something is being written"
    if rng.random() < .5: return time.sleep(rng.uniform(0, most))
    before, until = set(harness.temporary(out)), time.monotonic()+most
    while time.monotonic() < until and child.alive() and not set(harness.temporary(out)) - before: time.sleep(.002)
    time.sleep(rng.uniform(0, .02))

def cases(rng):
    while True:
        for what in rng.sample(list(COMMANDS), len(COMMANDS)):
            yield dict(what=what, workers=rng.choice((0, 1, 2)) if what in LEADER else 0, kills=rng.randint(3, 10),
                seed=rng.randrange(10**6))

def run(case):
    what, rng, root, shared = case['what'], random.Random(case['seed']), materials(), harness.shared_memory()
    (whole, took), out, kills, failed = undisturbed(what), root/'out'/what, 0, 0
    keep = server().pid,
    prepare(what, root, out)
    while True:
        again = kills < case['kills']
        clip = rng.randrange(2) if what in ('embed', 'sampling') and again else 0
        child = harness.fork(do, what, root, out, case | dict(clip=clip))
        if again:
            wait_to_strike(child, out, rng, 1.1*took + 3*(case['workers'] > 0))
            alone = case['workers'] and rng.random() < .5
            if child.kill(group=not alone):
                kills += 1
                if bad := faults(what, out, root): return f'partial: {what} after {kills} kills: {bad[:2]}'
                continue
        status = child.wait(250)
        if status == 'hang': return f'hang: {what} after {kills} kills'
        if what == 'lerobot' and status and 'exists already' in child.last(): break     # killed after the last rename
        if status: # its orphans may hold the lock for a moment
            failed += 1
            if failed > 3: return f'failed: {what} after {kills} kills: {child.last()}'
            time.sleep(1)
        elif clip == 0 and not again: break
        elif again: kills += 1                # it was quicker
    if left := harness.outliving(allowed=keep): return f'outlives: {left}'
    if bad := faults(what, out, root): return f'partial: {what} in the end: {bad[:2]}'
    if different := harness.difference(whole, result(what, root, out)):
        return f'differs: {what} after {kills} kills: {different[:5]}'
    left = [*harness.temporary(out), *map(str, out.parent.glob(f'.tmp-*-{out.name}')),
        *harness.temporary(root/'data'), *(str(p.name) for p in Path(f'{out}-raw').rglob('*') if p.is_file())]
    if left: return f'leftover: {what} after {kills} kills: {left[:4]}'
    if new := harness.shared_memory()-shared: return f'leftover: {what} after {kills} kills: /dev/shm {sorted(new)[:4]}'
    return 'ok'
