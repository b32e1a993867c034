"""Two or three writers on one run, dataset, index, ledger or cache: each ends or is refused by name, and the result is that of one writer"""
import functools, json, random, shutil, time
from pathlib import Path
import torch, torch.utils.tensorboard
import harness, kill_data, kill_train

LIMIT = 600.
REFUSED = 'another process is writing', 'exists already', 'is locked'

def train(root, out, case): kill_train.train(kill_train.recipe(case['variant'], Path(out).name))
def rollouts(root, out, case):
    from steve1.rollout import RolloutConfig, run_rollouts
    run_rollouts(RolloutConfig(('chop a tree', 'dig a hole'), Path(out).name, (5,), 30, height=90,
        weights=str(root/'system')))
def ledger(root, out, case):
    from steve1.models.published import _write_ledger
    for name in case['files']: _write_ledger(Path(out)/name)
def collection_ledger(root, out, case):
    from steve1.data.collect import Ledger
    for name in case['files']: Ledger(Path(out)/'ledger.jsonl').add(name, 'broken', 'x'*5000)
def mapped(root, out, case):
    from steve1.episodes import Episode
    for p in sorted((root/'published').iterdir()): Episode(p).embeds

OURS = dict(train=train, features=train, rollouts=rollouts, ledger=ledger, collection_ledger=collection_ledger,
    mapped=mapped)
THEIRS = 'generate', 'recordings', 'silent', 'embed', 'contractor', 'legacy', 'lerobot', 'foreign', 'sampling'
NAMES = [*OURS, *THEIRS]

def do(what, root, out, case, start):
    torch.set_num_threads(1)
    while time.time() < start: time.sleep(.0005)
    (OURS.get(what) or kill_data.COMMANDS[what])(root, out, case)

def place(what, root, name):
    "Where it writes"
    return root/'data'/'runs'/name if what in ('train', 'features', 'rollouts') else root/'out'/name

def prepare(what, root, out):
    kill_data.prepare(what, root, out)
    if what == 'features': shutil.rmtree(root/'data'/'cache'/'features', ignore_errors=True)
    if what == 'mapped': shutil.rmtree(root/'data'/'cache'/'published', ignore_errors=True)
    if 'ledger' in what:
        out.mkdir(parents=True)
        for i in range(12): (out/f'f{i}').write_bytes(b'x'*i)

def result(what, root, out):
    "What one writer leaves, without dates and times"
    if what in ('train', 'features'): return kill_train.bits(out)
    if what == 'rollouts':
        return {p.name:0 for p in out.iterdir() if p.name != '.lock'} | harness.tree(out,
            lambda rel: rel.suffix not in ('.npy', '.csv'))
    if what == 'ledger': return {k:v['size'] for k,v in json.loads((out/'published.json').read_text()).items()}
    if what == 'collection_ledger':
        return {r['name']:r['reason'] for r in map(json.loads, (out/'ledger.jsonl').read_text().splitlines())}
    if what == 'mapped': return harness.tree(root/'data'/'cache'/'published')
    if what == 'embed': return {p.name:not kill_data.faults('embed', out, root) for p in out.iterdir()}
    return kill_data.result(what, root, out)

def settings(what, i=0, n=1):
    "What differs between writers"
    return dict(workers=0, variant='features' if what == 'features' else 'plain', clip=i if what == 'embed' else 0,
        files=[f'f{j}' for j in range(12) if j%n == i])

@functools.cache
def undisturbed(what):
    root, t0 = kill_data.trainable(), time.monotonic()
    out = place(what, root, f'{what}-whole')
    prepare(what, root, out)
    child = harness.fork(do, what, root, out, settings(what), 0)
    assert child.wait(400) == 0, (what, child.text()[-2000:])
    return result(what, root, out), time.monotonic()-t0

def cases(rng):
    while True:
        for what in rng.sample(NAMES, len(NAMES)):
            yield dict(what=what, n=rng.choice((2, 2, 3)), apart=round(rng.random()**3, 4), kill=rng.random() < .3,
                seed=rng.randrange(10**6))

def run(case):
    what, rng, root = case['what'], random.Random(case['seed']), kill_data.trainable()
    n, (want, took) = 2 if what == 'embed' else case['n'], undisturbed(what)
    out = place(what, root, what)
    prepare(what, root, out)
    start = time.time()+.1
    children = [harness.fork(do, what, root, out, settings(what, i, n), start + i*case['apart']*took,
        said=harness.campaign_folder()/f'said{i}.txt') for i in range(n)]
    killed = 'ledger' not in what and case['kill']           # one of them dies; a last one does the rest
    if killed: time.sleep(rng.uniform(0, took)+.1); children[0].kill()
    ended = [c.wait(250) for c in children]
    if 'hang' in ended: return f'hang: {what}: {ended}'
    for c in children:
        if c.status > 0 and not any(r in c.text() for r in REFUSED): return f'failed: {what}: {c.last()}'
    if killed or 0 not in ended:
        if 0 not in ended and not killed: return f'all refused: {what}: {[c.last() for c in children]}'
        last = harness.fork(do, what, root, out, settings(what), 0)
        if last.wait() and 'exists already' not in last.text():
            return f'failed: {what} once the others had ended: {last.last()}'
    if different := harness.difference(want, result(what, root, out)):
        return f'differs: {what} {ended}: {different[:4]}'
    if bad := kill_data.faults(what, out, root) if what in THEIRS else []: return f'partial: {what}: {bad[:2]}'
    if left := [*harness.temporary(out), *harness.temporary(root/'data')]:
        return f'leftover: {what} {ended}: {left[:3]}'
    if left := harness.outliving(allowed=(kill_data.server().pid,)): return f'outlives: {what}: {left}'
    return 'ok'
