"""Ctrl-C, kill, hang-up and closed pipes in every command at any moment: one line, the right exit status, nothing left"""
import functools, os, shutil, signal, sys, time
from pathlib import Path
import torch, torch.utils.tensorboard
import harness, kill_data

LIMIT = 600.
CLIS = dict(generate='data.generate:generate_cli', embed='data.embed:embed_cli',
    recordings='data.importing:recordings_cli', contractor='data.collect:contractor_cli',
    episode='data.inspect:episode_cli', train='train:train_cli', rollout='rollout:rollout_cli',
        play='demo:play_cli', foreign='data.foreign:foreign_cli',
    sampling='data.sampling:sampling_cli', convert='models.published:convert_cli',
        download='models.published:download_cli', verify='verify:verify_cli')

def lines(root):
    "Name -> (command, its words)"
    clip, system = str(root/'clip0'/'mineclip.safetensors'), str(root/'system')
    return dict(
        generate=('generate', 'out', '4', '--n_steps', '60', '--size', '32', '--workers', '0'),
        generate_workers=('generate', 'out', '4', '--n_steps', '60', '--size', '32', '--workers', '1', '--play',
            '_toyplay:play'),
        embed=('embed', str(root/'out'/'emb'), '--clip', clip, '--workers', '0'),
        embed_workers=('embed', str(root/'out'/'emb'), '--clip', clip, '--workers', '1'),
        recordings=('recordings', str(root/'mine'), '--out', 'out', '--size', '64', '--clip', clip, '--workers', '0'),
        silent=('recordings', str(root/'silent'), '--out', 'out', '--size', '64', '--idm',
            str(root/'idm.safetensors'), '--workers', '0'),
        contractor=('contractor', str(root/'site'/'index.json'), '--out', 'out', '--size', '64', '--workers', '0'),
        legacy=('episode', 'convert', str(root/'published'), 'out'),
        validate=('episode', 'validate', str(root/'emb')),
        train=('train', '--preset', 'tiny', '--name', 'out', '--n_frames', '1600', '--save_every', '128',
            '--val_every', '192'),
        train_features=('train', '--preset', 'tiny', '--name', 'out', '--n_frames', '1600', '--save_every', '128',
            '--freeze', 'cnn'),
        train_ahead=('train', '--preset', 'tiny', '--name', 'out', '--n_frames', '1600', '--save_every', '128',
            '--workers', '2'),
        rollout=('rollout', 'chop a tree, dig a hole', '--n_steps', '40', '--name', 'out', '--height', '90',
            '--weights', system),
        play=('play', '--n_steps', '40', '--weights', system, '--folder', str(root/'data'/'runs'/'out')),
        index=('foreign', 'index', str(root/'emb'), '--link', 'out'),
        lerobot=('foreign', 'export', str(root/'emb'), str(root/'data'/'datasets'/'out'), '--limit', '3'),
        sampling=('sampling', 'out', str(root/'emb'), '--val_share', '.25'),
        convert=('convert', str(root/'system'/'prior.safetensors'), str(root/'data'/'datasets'/'out.pt')),
        download=('download', 'attn.pth', '--mirror', 'http://127.0.0.1:9/'),
        verify=('verify',))

HOW = dict(interrupt=('SIGINT', True), terminate=('SIGTERM', False), terminate_all=('SIGTERM', True),
    hangup=('SIGHUP', True), pipe=('', False))
WORST = dict(SIGINT=(130, -2), SIGTERM=(143, -15), SIGHUP=(129, -1))

@functools.cache
def materials():
    root = kill_data.trainable()
    for name in CLIS.values():                # a child has everything imported
        module, _, f = name.partition(':')
        __import__(f'steve1.{module}')
    return root

def prepare(root):
    for p in ('datasets/out', 'datasets/out.pt', 'runs/out', 'cache/features', 'cache/index', 'cache/contractor',
        'weights/published'):
        harness.retry(root/'data'/p)
    harness.retry(root/'out')
    for p in (root/'data'/'samplings').glob('out_*'): p.unlink()
    (root/'data'/'datasets'/'out.pt').unlink(missing_ok=True)
    shutil.copytree(root/'bare', root/'out'/'emb')

def call(words, out=(None, None), into=(None, None)):
    "A command in this process, as its console script calls it; pipes as (to read, to write)"
    from importlib import import_module
    torch.set_num_threads(1)
    for fd in (out[0], into[1]): fd is not None and os.close(fd)       # the other ends are not ours
    stdout, stdin = out[1], into[0]
    if stdout is not None: os.dup2(stdout, 1)
    if stdin is not None: os.dup2(stdin, 0); sys.stdin = open(0)
    module, _, f = CLIS[words[0]].partition(':')
    sys.argv = [f'steve1_{words[0]}', *words[1:]]
    sys.exit(getattr(import_module(f'steve1.{module}'), f)())

def pipe_for(name, how):
    "(descriptor of standard output, of standard input, what to close later)"
    out, into = os.pipe() if how == 'pipe' else (None, None), os.pipe() if name == 'play' else (None, None)
    if into[1] is not None: os.write(into[1], b'chop a tree\ndig a hole\n'*2)
    return out, into

@functools.cache
def seconds(name):
    "How long the command takes undisturbed"
    root = materials(); prepare(root)
    _, into = pipe_for(name, '')
    t0 = time.monotonic()
    child = harness.fork(call, lines(root)[name], (None, None), into)
    for fd in into: fd is not None and os.close(fd)
    status = child.wait(400)
    assert status == 0 or name in ('download', 'verify', 'play'), (name, status, child.text()[-2000:])
    return time.monotonic()-t0

def cases(rng):
    while True:
        for name in rng.sample(NAMES, len(NAMES)):
            how = rng.choice(list(HOW))
            fresh = rng.random() < .2 and how != 'pipe'           # a new Python, to be hit while it imports
            yield dict(name=name, how=how, fresh=fresh, at=round(rng.random(), 4))
NAMES = list(lines(Path('/')))

def run(case):
    name, how, shared = case['name'], case['how'], harness.shared_memory()
    root, sig = materials(), HOW[case['how']][0]
    took = seconds(name)
    prepare(root)
    keep, temp = (kill_data.server().pid,), Path(os.environ['TMPDIR'])
    had = set(temp.iterdir())
    out, into = pipe_for(name, how)
    words = lines(root)[name]
    if case['fresh']:
        path = os.pathsep.join(map(str, (harness.ROOT, Path(__file__).parent)))     # of the toy play function
        child = harness.command([f'steve1_{words[0]}', *words[1:]], env=dict(PYTHONPATH=path),
            stdin=into[0] if into[0] is not None else -3)
        time.sleep(.15 + case['at']*4)
    else:
        child = harness.fork(call, words, out, into)
        time.sleep(case['at']*took*1.1)
    for fd in (out[1], into[0]): fd is not None and os.close(fd)
    if how == 'pipe': os.close(out[0]); late = False
    else: late = not child.send(getattr(signal, sig), HOW[how][1])
    if name == 'play' and how == 'pipe': os.close(into[1])
    status = child.wait(150)
    if name == 'play' and how != 'pipe': os.close(into[1])
    text = child.text()
    allowed = (0, 1, 141, -13) if how == 'pipe' else (0, *WORST[sig]) + ((1,) if name in ('download', 'verify')
        or late else ())
    if status == 'hang': return f'hang: {name} {how}: 150 s after the signal: {child.last()}'
    if status not in allowed: return f'status: {name} {how}: ended with {status}: {child.last()}'
    if 'Traceback' in text or 'Exception ignored' in text: return f'traceback: {name} {how}: {child.last()}'
    said = [l for l in text.splitlines() if l.startswith('steve1_') and 'warning' not in l]
    if len(said) > 1: return f'lines: {name} {how}: {said[:3]}'
    if left := harness.outliving(15, allowed=keep): return f'outlives: {name} {how}: {left}'
    left = [p for p in harness.temporary(root) if not p.endswith('.part')] # a part of a download is gone on with
    left += [p.name for p in set(temp.iterdir())-had]
    if left: return f'leftover: {name} {how} {status}: {left[:3]}'
    if new := harness.shared_memory()-shared: return f'leftover: {name} {how}: /dev/shm {sorted(new)[:3]}'
    return 'ok'
