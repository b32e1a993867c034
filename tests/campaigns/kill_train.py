"""Training killed at random with SIGKILL until it ends: every bit of an undisturbed run, nothing left over"""
import functools, json, pickle, random, shutil, time
import numpy as np, torch, torch.utils.tensorboard
import harness
from steve1.training.recipe import TrainConfig

LIMIT = 600.
BASE = dict(log_every=3, val_every=7*64, save_every=2*64, n_frames=40*64, val_batches=1)
VARIANTS = dict(
    plain=dict(ema=.9, augment=True, snapshot_every=20*64),
    accumulate=dict(accumulate=2, goals='chunk', augment='vpt'),
    mixture=dict(mix='old', mix_share=.5, schedule='constant'),
    features=dict(freeze=('cnn',), ema=.5),
    ahead=dict(workers=2, augment='colour'),
    finetune=dict(init='runs/start/latest.safetensors', patience=50),
    impala=dict(policy_set=dict(trunk='impala', channels=(4,8,8)), n_frames=24*64),
    idm=dict(policy='idm/tiny', p_uncond=1., n_frames=16*64),
    pair=dict(n_frames=16*64),
    pair_features=dict(freeze=('cnn',), n_frames=16*64),
    launch=dict(n_frames=16*64),
    prior=dict(steps=400, val_every=20, batch=32, pairs='pairs.pkl'))

def recipe(variant, name): return TrainConfig.preset('tiny', **(BASE | VARIANTS[variant])).replace(name=name)

def train(cfg):
    from steve1.train import train
    torch.set_num_threads(1)
    train(cfg)

def launched(cfg):
    "What a notebook does: two processes of their own, which must end when this one is gone"
    from steve1.training.launch import launch
    launch(cfg, procs=2)

def prior(settings, name):
    "A prior has no saved state: a killed training begins anew"
    from steve1.prior import prior_cli
    torch.set_num_threads(1)
    words = [w for k,v in settings.items() for w in (f'--{k}', str(v))]
    prior_cli([*words, '--out', f'runs/{name}/prior.safetensors'])

def make_pairs(path):
    "Pairs of text and goal as published, of noise"
    rng = np.random.default_rng(0)
    text, goal = rng.standard_normal((12,8)), rng.standard_normal((400,8))
    goals = [(text[i%12]+g)[None].astype(np.float32) for i,g in enumerate(goal)]
    path.write_bytes(pickle.dumps(dict(text_embeddings=[text[i%12][None].astype(np.float32) for i in range(400)],
        visual_embeddings=goals), 4))

def start(variant, name):
    "The processes of a training"
    if variant == 'prior': return [harness.fork(prior, VARIANTS[variant], name)]
    if variant == 'launch': return [harness.fork(launched, recipe(variant, name))]
    cfg, world = recipe(variant, name), 2 if variant.startswith('pair') else 1
    if world == 1: return [harness.fork(train, cfg)]
    store = harness.case_folder()/f'store{time.monotonic_ns()}'
    env = dict(STEVE1_STORE=str(store), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', STEVE1_PROCS='2',
        ACCELERATE_USE_CPU='true', GLOO_SOCKET_IFNAME='lo')
    return [harness.fork(train, cfg, env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
        said=harness.campaign_folder()/f'said{r}.txt') for r in (0, 1)]

@functools.cache
def root():
    "Toy data, and a run to fine-tune"
    folder = harness.campaign_folder()/'data'
    if (folder/'ready').exists(): return harness.set_data(folder)
    shutil.rmtree(folder, ignore_errors=True)
    harness.toy_data(folder)
    make_pairs(folder/'pairs.pkl')
    child = harness.fork(train, TrainConfig.preset('tiny', n_frames=4*64).replace(name='start'))
    assert child.wait(400) == 0, child.text()[-2000:]
    (folder/'ready').touch()
    return folder

@functools.cache
def undisturbed(variant):
    "(what a whole run leaves, its seconds)"
    data, name, t0 = root(), f'{variant}-whole', time.monotonic()
    shutil.rmtree(data/'runs'/name, ignore_errors=True)
    ended = [c.wait(400) for c in start(variant, name)]
    assert not any(ended), (variant, ended, [p.read_text()[-1500:] for p in harness.campaign_folder().glob('said*')])
    took = time.monotonic()-t0
    shutil.rmtree(data/'cache', ignore_errors=True)      # features are computed under fire, too
    return bits(data/'runs'/name), took

def flat(x, at):
    "Leaves of nested dicts and lists with their paths"
    if not isinstance(x, (dict, list, tuple)): yield at, x; return
    for k,v in x.items() if isinstance(x, dict) else enumerate(x): yield from flat(v, f'{at}/{k}')

def bits(run):
    "All of a finished run that must not depend on kills: weights, rows and the state"
    from safetensors import safe_open
    from steve1.base.untrusted import safe_torch_load
    out = {}
    for f in sorted(run.glob('[!.]*.safetensors')):
        with safe_open(f, 'pt') as s:
            out |= {f'{f.name}:{k}':s.get_tensor(k).numpy().tobytes() for k in s.keys()}
            record = json.loads(s.metadata()['steve1'])['record']
        out[f'{f.name}:record'] = json.dumps({k:v for k,v in record.items() if k not in ('hours','date','train')},
            sort_keys=True)
    rows = map(json.loads, (run/'metrics.jsonl').read_text().splitlines())
    out['metrics.jsonl'] = json.dumps([{k:v for k,v in r.items() if not k.startswith('speed/')} for r in rows])
    for f in sorted((run/'state').glob('*.pt')):
        for at,x in flat(safe_torch_load(f), f.name):
            if at in ('main.pt/seconds', 'main.pt/cfg/name') or at.endswith(('/sums/took', '/sums/wait')): continue
            out[f'state/{at}'] = x.contiguous().numpy().tobytes() if torch.is_tensor(x) else repr(x)
    return out

def strike(children, folder, rng, took):
    "Kill at a random moment; half of the kills aim at a save. Was a process hit?"
    aim, until = rng.random(), time.monotonic()+min(took, 6)
    if aim < .5: time.sleep(rng.uniform(0, min(.6*took, 3)))
    else:
        saving = (lambda: (folder/'state.new').exists()) if aim < .85 else (lambda: any(folder.glob('.tmp-*')))
        before = saving()
        while before and saving() and time.monotonic() < until: time.sleep(.0005)
        while not saving() and time.monotonic() < until and children[0].alive(): time.sleep(.0005)
        time.sleep(rng.uniform(0, .012))
    one = len(children) > 1 and rng.random() < .5
    hit = [c.kill() for c in (rng.sample(children, 1) if one else children)]
    if one and any(hit): # the other process notices, or is ended as `launch` does
        for c in children: c.wait(3)
    return any(hit)

def cases(rng):
    while True:
        for variant in rng.sample(list(VARIANTS), len(VARIANTS)):
            yield dict(variant=variant, kills=rng.randint(3, 10), seed=rng.randrange(10**6))

def run(case):
    variant, rng, shared = case['variant'], random.Random(case['seed']), harness.shared_memory()
    whole, took = undisturbed(variant)
    folder, kills, failed, waited = root()/'runs'/f'{variant}-killed', 0, 0, 0
    harness.retry(folder)
    if 'features' in variant: shutil.rmtree(root()/'cache', ignore_errors=True)
    while True:
        children = start(variant, folder.name)
        if kills < case['kills'] and strike(children, folder, rng, took):
            kills += 1; continue
        ended = [c.wait(250) for c in children]
        if not any(ended): break
        if 'hang' in ended: return f'hang: {variant} after {kills} kills: {ended}'
        if 'another process is writing' in children[0].text(): # what `launch` started saves its state before it ends
            time.sleep(1); waited += 1
            if waited < 60: continue
        failed += 1
        if failed > 1:
            return f'failed: {variant} after {kills} kills ended with {ended}: {" | ".join(c.last() for c in children)}'
    if left := harness.outliving(): return f'outlives: {left}'
    different = harness.difference(whole, bits(folder))
    if different: return f'differs: {variant} after {kills} kills: {len(different)} values, {different[:5]}'
    left = [*harness.temporary(root()), *(['state.new'] if (folder/'state.new').exists() else [])]
    if left: return f'leftover: {variant} after {kills} kills: {left[:4]}'
    if new := harness.shared_memory()-shared:
        return f'leftover: {variant} after {kills} kills: /dev/shm {sorted(new)[:4]}'
    return 'ok'
