"Faults of a training run: kills at random moments, a full disk, damage, a stop button, several processes, two runs of one name"
import multiprocessing, os, random, re, signal, socket, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np, pytest, torch, yaml
from steve1.config import data_dir, repo_root
from steve1.base.checkpoints import load_tensors, read_meta
from steve1.base.files import sole_writer
from steve1.base.untrusted import safe_torch_load
from steve1.episodes import EpisodeWriter
from steve1.policy import Policy, PolicyConfig
from steve1.data.sampling import make_sampling
from steve1.train import TrainConfig, Trainer, make_policy, train
from steve1.training.launch import launch
from steve1.training.runs import RunFolder, TrainingStopped
torch.set_num_threads(1)

TINY = TrainConfig.preset('tiny', log_every=3, ema=.9, augment=True, val_every=20*64, save_every=4*64)
CHILD = """
import os, resource
import torch.utils.tensorboard
from steve1.train import TrainConfig, train, train_cli

def run(env, argv): # what a process of its own does
    os.environ.update(env)
    train_cli(argv)

def run_on_a_full_disk(env, cfg, step, limit):
    os.environ.update(env)
    def fill(trainer):
        if trainer.step == step: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try: train(TrainConfig.from_dict(cfg), fill)
    except OSError as e:
        with open(env['SAID'], 'w') as f: f.write(str(e))
        raise SystemExit(1)
"""

@pytest.fixture(scope='module', autouse=True)
def data(tmp_path_factory):
    "Toy episodes below a data root of their own"
    root = tmp_path_factory.mktemp('data')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('STEVE1_DATA', str(root)); m.setenv('OMP_NUM_THREADS', '1')
        m.setenv('PYTHONPATH', os.pathsep.join([str(repo_root()), os.environ.get('PYTHONPATH', '')]))
        (root/'train_child.py').write_text(CHILD); m.syspath_prepend(str(root))
        pc, rng = PolicyConfig.preset('tiny'), np.random.default_rng(0)
        for e in range(8):
            with EpisodeWriter(root/'datasets'/'tiny'/f'{e:03d}', pc.image_size, seed=e, source='toy') as w:
                w.add_many(rng.integers(0, 255, (90, *pc.image_size, 3), dtype=np.uint8), dict(forward=rng.integers(0, 2, 90), camera=rng.choice([0., 3.], (90,2))))
            embeds = rng.standard_normal((90, pc.d_goal)); embeds[:15] = np.nan
            np.save(root/'datasets'/'tiny'/f'{e:03d}'/'embeds.npy', embeds.astype(np.float16))
        make_sampling('tiny', ['tiny'], val_share=1/4, seed=0)
        yield root

@pytest.fixture(scope='module')
def fork(data):
    "Starts processes from a server that has everything imported: a process that can be killed takes 50 ms, not 5 s"
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['train_child'])
    import train_child
    def start(f, *args, **env):
        p = ctx.Process(target=getattr(train_child, f), args=(dict(STEVE1_DATA=str(data), **env), *args)); p.start()
        return p
    return start

def config(cfg):
    "The config in a file, as a command line takes it"
    path = data_dir('runs', f'{cfg.name}.yaml'); path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(cfg.to_dict(), sort_keys=False).replace('!!python/tuple', ''))
    return ['--config', str(path)]

def run(fork, cfg):
    p = fork('run', config(cfg)); p.join(); assert p.exitcode == 0

def rows(name): return [{k:v for k,v in r.items() if not k.startswith('speed/')} for r in RunFolder(name).metrics()] # all but times

def assert_same(a, b):
    "Two runs left the same files, weights and rows, to the bit"
    names = [sorted(p.name for p in data_dir('runs', n).glob('*.safetensors')) for n in (a,b)]
    assert names[0] == names[1] and 'latest.safetensors' in names[0]
    for f in names[0]:
        x, y = (load_tensors(data_dir('runs', n, f))[0] for n in (a,b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), f
    assert rows(a) == rows(b)

def test_twenty_kills(fork):
    "Killed twenty times at random moments, half of them without warning, a run ends as if nothing had been"
    cfg = TINY.replace(name='killed', n_frames=10**9, schedule='constant', save_every=3*64, snapshot_every=40*64) # no end in sight
    rng, kills, seen = random.Random(0), [signal.SIGKILL, signal.SIGTERM]*10, []
    rng.shuffle(kills)
    state = data_dir('runs', 'killed', 'state', 'manifest.json')
    age = lambda: state.stat().st_mtime_ns if state.exists() else 0
    for i,sig in enumerate(kills):
        before, p = age(), fork('run', config(cfg))
        end = time.monotonic()+60
        if i%4: # else at any moment, also before the first step
            while age() == before and p.is_alive() and time.monotonic() < end: time.sleep(.002)
        time.sleep(rng.uniform(0, .1))
        assert p.is_alive(), f'it ended before kill {i}'
        os.kill(p.pid, sig); p.join()
        if age(): seen.append(safe_torch_load(state.parent/'main.pt')['step'])
    assert seen == sorted(seen) and seen[-1] > 10
    for name in ('killed','whole'): run(fork, cfg.replace(name=name, n_frames=(seen[-1]+10)*64))
    assert_same('killed', 'whole')
    assert list(data_dir('runs', 'killed').glob('.tmp-*')) == [] # what killed writers left is cleared away

def test_damaged_state(fork):
    "A newest state that is damaged costs the steps since the one before it and nothing else"
    cfg = TINY.replace(name='undamaged', n_frames=12*64, schedule='constant', val_every=4*64)
    run(fork, cfg)
    run(fork, cfg.replace(name='damaged', n_frames=8*64))
    f = data_dir('runs', 'damaged', 'state', 'main.pt'); f.write_bytes(f.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match='damaged/state is damaged; falling back'): train(cfg.replace(name='damaged'))
    x, y = (load_tensors(data_dir('runs', n, 'latest.safetensors'))[0] for n in ('undamaged', 'damaged'))
    assert all(torch.equal(x[k], y[k]) for k in x)

@pytest.mark.parametrize('limit', [500_000, 2_000_000]) # neither the checkpoint nor the state fits; the state does not
def test_full_disk(fork, tmp_path, limit):
    "Where nothing more can be written a run stops, says so, and goes on when there is room"
    cfg = TINY.replace(name='room', n_frames=20*64, val_every=10*64)
    if not data_dir('runs', 'room').exists(): run(fork, cfg)
    p = fork('run_on_a_full_disk', cfg.replace(name=f'full{limit}').to_dict(), 9, limit, SAID=str(tmp_path/'said')); p.join()
    assert p.exitcode == 1 and 'Make room' in (tmp_path/'said').read_text()
    assert safe_torch_load(data_dir('runs', f'full{limit}', 'state', 'main.pt'))['step'] == 8
    run(fork, cfg.replace(name=f'full{limit}'))
    assert_same('room', f'full{limit}')

def test_stop_button(data):
    "The stop button of a notebook ends a run that has saved its state and says so; the same cell goes on"
    from jupyter_client.manager import start_new_kernel
    km, kc = start_new_kernel(kernel_name='python3', cwd=str(repo_root()/'nbs'))
    try:
        cell = 'from steve1.train import TrainConfig\nfrom steve1.training.launch import launch\nres = launch(TrainConfig.preset("tiny", n_frames={n}*64, save_every=10**6).replace(name="button"), procs=1)\nprint(res["frames"])'
        asked = kc.execute(cell.format(n=10**6))
        end = time.monotonic()+60
        while not RunFolder('button').metrics() and time.monotonic() < end: time.sleep(.1)
        km.interrupt_kernel()
        while (m := kc.get_shell_msg(timeout=60))['parent_header'].get('msg_id') != asked: pass
        reply = m['content']
        assert reply.get('ename') == 'TrainingStopped' and 'the state is saved' in reply['evalue'], reply
        step = safe_torch_load(data_dir('runs', 'button', 'state', 'main.pt'))['step']
        assert step >= RunFolder('button').metrics()[-1]['step'] > 0
    finally: kc.stop_channels(); km.shutdown_kernel(now=True)

def test_two_runs_of_one_name(data):
    "A run belongs to one process: a second training, or a launch, of the same name is refused and touches nothing"
    cfg = TINY.replace(name='taken', n_frames=4*64)
    train(cfg)
    before = {p.name:p.stat().st_mtime_ns for p in data_dir('runs', 'taken').iterdir() if p.name != '.lock'}
    def again(trainer):
        if trainer.step == 1:
            with pytest.raises(RuntimeError, match='another process is writing to .*taken2'): train(cfg.replace(name='taken2'))
    train(cfg.replace(name='taken2'), again)
    with sole_writer(data_dir('runs', 'taken')):
        for f in (train, launch):
            with pytest.raises(RuntimeError, match='another process is writing to .*taken'): f(cfg)
    assert before == {p.name:p.stat().st_mtime_ns for p in data_dir('runs', 'taken').iterdir() if p.name != '.lock'}

def test_stop_in_the_first_validation(data):
    "Ctrl-C while a fine-tune judges where it starts from is one line, and the state is saved"
    run_cfg = TINY.replace(name='origin', n_frames=2*64)
    train(run_cfg)
    cfg = run_cfg.replace(name='early', init='runs/origin/latest.safetensors')
    class Interrupted(Trainer):
        def validate(self, episodes=None):
            os.kill(os.getpid(), signal.SIGINT)
            return super().validate(episodes)
    with pytest.raises(TrainingStopped, match='at 0 of 128 frames; the state is saved'): Interrupted(cfg).fit()
    assert train(cfg)['frames'] == 128

def family(pid):
    "A process and all that descend from it"
    parents = {}
    for p in Path('/proc').glob('[0-9]*'):
        try: parents[int(p.name)] = int((p/'stat').read_text().rsplit(')', 1)[1].split()[1])
        except OSError: pass
    out = [pid]
    for p in out: out += [c for c,parent in parents.items() if parent == p]
    return out

def listening(pids):
    "Addresses, as hexadecimal digits, on which these processes listen"
    inodes = set()
    for p in pids:
        for fd in Path(f'/proc/{p}/fd').glob('*'):
            try: inodes |= set(re.findall(r'socket:.(\d+)', os.readlink(fd)))
            except OSError: pass
    rows = [l.split() for n in ('tcp','tcp6') for l in Path('/proc/net', n).read_text().splitlines()[1:]]
    return [r[1] for r in rows if r[3] == '0A' and r[9] in inodes]

@pytest.fixture(scope='module')
def launched(data):
    "A launch of two processes without end, in a process of its own"
    code = ('from steve1.train import TrainConfig; from steve1.training.launch import launch; '
        "launch(TrainConfig.preset('tiny', name='open', n_frames=10**9, save_every=10**9), procs=2)")
    p = subprocess.Popen([sys.executable, '-c', code], env=dict(os.environ, STEVE1_DATA=str(data)), cwd=repo_root())
    end = time.monotonic()+90
    while not RunFolder('open').metrics() and time.monotonic() < end and p.poll() is None: time.sleep(.2)
    assert RunFolder('open').metrics(), (data_dir('runs', 'open', 'launch.log').read_text())
    yield p
    for q in family(p.pid)[::-1] if p.poll() is None else []: os.kill(q, signal.SIGKILL)

def test_a_launch_is_closed_to_the_network(launched):
    "No process of a running launch listens on an address that other machines can reach"
    pids = family(launched.pid)
    assert len(pids) == 3
    addresses = listening(pids)
    assert addresses, 'the two processes exchange gradients over the loopback interface'
    loopback = ('0100007F:', '00000000000000000000000001000000:', '0000000000000000FFFF00000100007F:')
    assert all(a.startswith(loopback) for a in addresses), addresses

def test_a_launch_ends_with_its_parent(launched):
    "The kernel of a notebook is killed: its training saves its state and ends"
    children = family(launched.pid)[1:]
    launched.kill(); launched.wait()
    end = time.monotonic()+60
    alive = lambda: [c for c in children if Path(f'/proc/{c}').exists() and Path(f'/proc/{c}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z']
    while alive() and time.monotonic() < end: time.sleep(.2)
    assert alive() == []
    assert safe_torch_load(data_dir('runs', 'open', 'state', 'main.pt'))['step'] > 0
    said = [l for l in data_dir('runs', 'open', 'launch.log').read_text().splitlines() if 'stopped' in l]
    assert len([l for l in said if l.startswith('steve1_train: ')]) == 1, said # one line, not one a process

def ranks(fork, cfg, world=2):
    """The run in several processes, as torchrun would start them; started again if one dies of a signal.
    A sharded process on a loaded CPU once in some twenty runs died of a segmentation fault when weights were gathered at the end; the cause is not known.
    So that it does not pass unseen, such a death is a warning."""
    for _ in range(3):
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        env = dict(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), STEVE1_PROCS=str(world), ACCELERATE_USE_CPU='true')
        ps = [fork('run', config(cfg), RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(world)]
        for p in ps: p.join()
        if all(p.exitcode >= 0 for p in ps): break
        warnings.warn(f'processes ended with {[p.exitcode for p in ps]}; once more')
    assert [p.exitcode for p in ps] == [0]*world
    record = read_meta(data_dir('runs', cfg.name, 'latest.safetensors'))['record']
    assert record['processes'] == world
    return load_tensors(data_dir('runs', cfg.name, 'latest.safetensors'))[0]

def test_ctrl_c_in_two_processes(fork):
    "Ctrl-C reaches every process, and torchrun then sends SIGTERM: one request, the state is saved, the run goes on"
    cfg = PAIR.replace(name='pair', n_frames=10**9, save_every=10**9)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), STEVE1_PROCS='2', ACCELERATE_USE_CPU='true')
    ps = [fork('run', config(cfg), RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(2)]
    end = time.monotonic()+60
    while not RunFolder('pair').metrics() and time.monotonic() < end: time.sleep(.05)
    for sig in (signal.SIGINT, signal.SIGTERM):
        for p in ps: os.kill(p.pid, sig)
    for p in ps: p.join(60)
    assert [p.exitcode for p in ps] == [128 + signal.SIGINT]*2
    step = safe_torch_load(data_dir('runs', 'pair', 'state', 'main.pt'))['step']
    assert 'stopped at' in (data_dir('runs', 'pair')/'train.log').read_text().splitlines()[-1]
    ranks(fork, cfg.replace(n_frames=(step+2)*64))

def assert_near(a, b, cfg):
    "Two ways to the same weights are as near as rounding lets them: a thousandth of the way that training went"
    start = make_policy(cfg).state_dict()
    far = lambda x, y: sum((x[k]-y[k]).square().sum() for k in start)**.5
    assert far(a, b) < 1e-3*far(a, start), (far(a, b), far(a, start))

PAIR = TINY.replace(n_frames=6*64, warmup_frames=0, schedule='constant', ema=0., augment=False)

@pytest.fixture(scope='module')
def one(fork):
    run(fork, PAIR.replace(name='one'))
    return load_tensors(data_dir('runs', 'one', 'latest.safetensors'))[0]

@pytest.mark.parametrize('shard', [False, True], ids=['copied', 'shared out'])
def test_two_processes_are_one_with_twice_the_batch(fork, one, shard):
    two = ranks(fork, PAIR.replace(name=f'two{shard}', shard=shard))
    assert_near(one, two, PAIR)
    losses = [[r['loss/train'] for r in RunFolder(n).metrics() if 'loss/train' in r] for n in ('one', f'two{shard}')]
    assert np.allclose(*losses, rtol=1e-5)

@pytest.mark.parametrize('how', [dict(accumulate=2), dict(freeze=('cnn',))], ids=['micro-batches', 'features'])
def test_shared_out_in_other_ways(fork, how):
    "Micro-batches and cached features work with shared weights, too"
    cfg = PAIR.replace(n_frames=3*64, **how); name = '-'.join(how)
    run(fork, cfg.replace(name=name)); a = load_tensors(data_dir('runs', name, 'latest.safetensors'))[0]
    b = ranks(fork, cfg.replace(name=name+'2', shard=True))
    assert_near(a, b, cfg)

def test_shared_out_runs_go_on_exactly(fork):
    "State that two processes hold in shares is written whole and comes back to the bit"
    cfg = PAIR.replace(name='through', shard=True)
    a = ranks(fork, cfg)
    ranks(fork, cfg.replace(name='again', n_frames=4*64)); b = ranks(fork, cfg.replace(name='again'))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_commands(one):
    "The commands of the documentation, literally"
    bin_, cfg = os.path.dirname(sys.executable), config(PAIR.replace(name='command', n_frames=2*64))
    env = dict(os.environ, PATH=f"{bin_}{os.pathsep}{os.environ['PATH']}", ACCELERATE_USE_CPU='true')
    for name,cmd,n in (('accelerate', ['accelerate', 'launch', '--cpu', '-m', 'steve1.train'], 1), ('torchrun', ['torchrun', '--nproc_per_node', '2', '-m', 'steve1.train'], 2)):
        r = subprocess.run([*cmd, *cfg, '--name', name], env=env, cwd=repo_root(), capture_output=True, text=True)
        assert r.returncode == 0, r.stderr
        assert read_meta(data_dir('runs', name, 'latest.safetensors'))['record']['processes'] == n
    r = subprocess.run([sys.executable, '-m', 'steve1.train', *cfg, '--learnrate', '1'], env=env, cwd=repo_root(), capture_output=True, text=True)
    assert r.returncode == 2 and 'learnrate' in r.stderr and 'Traceback' not in r.stderr

def logits(policy):
    g = torch.Generator().manual_seed(0); c = policy.cfg
    img, goal = torch.randint(0, 256, (2,9,*c.image_size,3), dtype=torch.uint8, generator=g), torch.randn(2, 9, c.d_goal, generator=g)
    with torch.no_grad(): out, _ = policy.eval()(img, goal, torch.zeros(2, 9, dtype=torch.bool))
    return torch.cat([out.buttons, out.camera, out.value[...,None]], -1)

def test_every_checkpoint_says_the_same(data):
    "save, load: the same logits for latest, best, snapshots, published names and half precision"
    cfg = TINY.replace(name='kinds', n_frames=4*64, snapshot_every=2*64, policy_set=dict(trunk='impala', channels=(4,8,8)))
    kept = {}
    def note(t):
        with t.avg.applied(): kept[t.frames] = logits(t.policy); t.policy.train()
    train(cfg, note)
    folder = data_dir('runs', 'kinds')
    for name,frames in (('latest', 256), ('snapshot_128', 128), ('snapshot_256', 256), ('best', read_meta(folder/'best.safetensors')['record']['frames'])):
        assert torch.equal(logits(Policy.load(folder/f'{name}.safetensors')), kept[frames]), name
    policy = Policy.load(folder/'latest.safetensors')
    torch.save({f'policy.{k}':v for k,v in policy.to_official().items()}, folder/'latest.weights')
    assert torch.equal(logits(Policy.from_official(folder/'latest.weights', policy.cfg)), kept[256])
    policy.half().float().save(folder/'half.safetensors')
    assert torch.equal(logits(policy), logits(Policy.load(folder/'half.safetensors'))) and (logits(policy)-kept[256]).abs().max() < .05

def test_what_ships_says_the_same(tmp_path):
    "The half-precision weights that ship are read, written in full, and read again to the same logits"
    shipped = repo_root()/'data'/'weights'/'policy.safetensors'
    if not shipped.exists(): pytest.skip('no shipped weights here: `git restore data/weights` brings them back')
    policy = Policy.load(shipped); policy.save(tmp_path/'again.safetensors')
    assert torch.equal(logits(policy), logits(Policy.load(tmp_path/'again.safetensors')))
