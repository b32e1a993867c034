"Training in processes of their own: a stop button, a launch and its parent, several processes that are one, the commands"
import os, re, signal, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, pytest, torch
from steve1.config import data_dir, repo_root
from steve1.base.checkpoints import load_tensors, read_meta
from steve1.base.files import is_alive
from steve1.base.untrusted import safe_torch_load
from steve1.train import train_cli
from steve1.training.recipe import make_policy
from steve1.training.runs import RunFolder
from train_runs import TINY, config, data, fork, run

def test_stop_button(data):
    "The stop button of a notebook ends a run that has saved its state and says so; the same cell goes on"
    from jupyter_client.manager import start_new_kernel
    km, kc = start_new_kernel(kernel_name='python3', cwd=str(repo_root()/'nbs'))
    try:
        cell = 'from steve1.train import TrainConfig\nfrom steve1.training.launch import launch\nres = launch(TrainConfig.preset("tiny", n_frames={n}*64, save_every=10**6).replace(name="button"), procs=1)\nprint(res["frames"])'
        asked = kc.execute(cell.format(n=10**6))
        end = time.monotonic()+60
        while not RunFolder('button').metrics() and time.monotonic() < end: time.sleep(.1)
        if Path('/proc').is_dir(): assert outside(family(km.provisioner.process.pid)) == [] # one process needs no port
        km.interrupt_kernel()
        while (m := kc.get_shell_msg(timeout=60))['parent_header'].get('msg_id') != asked: pass
        reply = m['content']
        assert reply.get('ename') == 'TrainingStopped' and 'the state is saved' in reply['evalue'], reply
        step = safe_torch_load(data_dir('runs', 'button', 'state', 'main.pt'))['step']
        assert step >= RunFolder('button').metrics()[-1]['step'] > 0
    finally: kc.stop_channels(); km.shutdown_kernel(now=True)

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

def outside(pids):
    "Those that other machines can reach"
    loopback = '0100007F:', '00000000000000000000000001000000:', '0000000000000000FFFF00000100007F:'
    return [a for a in listening(pids) if not a.startswith(loopback)]

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
    assert listening(pids), 'the two processes exchange gradients over the loopback interface'
    assert outside(pids) == []

def test_a_launch_ends_with_its_parent(launched):
    "The kernel of a notebook is killed: its training saves its state and ends"
    children = family(launched.pid)[1:]
    launched.kill(); launched.wait()
    end = time.monotonic()+60
    alive = lambda: [c for c in children if Path(f'/proc/{c}').exists()
        and Path(f'/proc/{c}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z']
    while alive() and time.monotonic() < end: time.sleep(.2)
    assert alive() == []
    assert safe_torch_load(data_dir('runs', 'open', 'state', 'main.pt'))['step'] > 0
    said = [l for l in data_dir('runs', 'open', 'launch.log').read_text().splitlines() if 'stopped' in l]
    assert len([l for l in said if l.startswith('steve1_train: ')]) == 1, said # one line, not one a process

ORPHAN = """import os, subprocess, sys
env = dict(os.environ, STEVE1_PARENT=str(os.getpid()))
p = subprocess.Popen([sys.executable, '-m', 'steve1.train', '--config', sys.argv[1]], env=env, start_new_session=True)
print(p.pid, flush=True); p.wait()"""

def test_a_process_that_waits_for_another_ends_with_its_parent(data, tmp_path):
    "A launch is killed while one of two processes waits for the other, which never comes: nothing is saved, it ends"
    argv, store = config(PAIR.replace(name='meeting')), tmp_path/'store'
    env = dict(os.environ, STEVE1_STORE=str(store), RANK='1', LOCAL_RANK='1', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
        STEVE1_PROCS='2', ACCELERATE_USE_CPU='true', GLOO_SOCKET_IFNAME='lo0' if sys.platform == 'darwin' else 'lo')
    p = subprocess.Popen([sys.executable, '-c', ORPHAN, argv[1]], env=env, cwd=repo_root(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child, end = p.stdout.readline().strip(), time.monotonic()+120
    while not (store.exists() and store.stat().st_size) and time.monotonic() < end: time.sleep(.05)
    time.sleep(1); assert is_alive(child), 'it did not wait'
    p.kill(); p.wait(); p.stdout.close()
    end = time.monotonic()+30 # far less than the minute that a training has to save its state
    while is_alive(child) and time.monotonic() < end: time.sleep(.1)
    if left := is_alive(child): os.kill(int(child), signal.SIGKILL)
    assert not left

PAIR = TINY.replace(n_frames=6*64, warmup_frames=0, schedule='constant', ema=0., augment=False)

def start_ranks(fork, cfg, world=2):
    "The processes of a run, as `launch` would start them: they meet in a file, so that no other program can take their port from them"
    folder = tempfile.mkdtemp(dir=data_dir('runs'))
    loopback = 'lo0' if sys.platform == 'darwin' else 'lo'
    env = dict(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), STEVE1_STORE=os.path.join(folder, 'store'),
        STEVE1_PROCS=str(world), GLOO_SOCKET_IFNAME=loopback, ACCELERATE_USE_CPU='true')
    argv = config(cfg) # once: a process that has begun reads this file
    return [fork('run', argv, RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(world)]

def ranks(fork, cfg, world=2):
    """The run in several processes; started again if one dies of a signal.
    A sharded process on a loaded CPU once in some twenty runs died of a segmentation fault when weights were gathered at the end; the cause is not known.
    So that it does not pass unseen, such a death is a warning."""
    for _ in range(3):
        ps = start_ranks(fork, cfg, world)
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
    ps = start_ranks(fork, cfg)
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
    run(fork, cfg.replace(name=name))
    a = load_tensors(data_dir('runs', name, 'latest.safetensors'))[0]
    b = ranks(fork, cfg.replace(name=name+'2', shard=True))
    assert_near(a, b, cfg)

def test_shared_out_runs_go_on_exactly(fork):
    "State that two processes hold in shares is written whole and comes back to the bit"
    cfg = PAIR.replace(name='through', shard=True)
    a = ranks(fork, cfg)
    ranks(fork, cfg.replace(name='again', n_frames=4*64))
    b = ranks(fork, cfg.replace(name='again'))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_commands(one, capsys):
    "The commands of the documentation, literally"
    bin_, cfg = os.path.dirname(sys.executable), config(PAIR.replace(name='command', n_frames=2*64))
    env = dict(os.environ, PATH=f"{bin_}{os.pathsep}{os.environ['PATH']}", ACCELERATE_USE_CPU='true')
    for name,cmd,n in (('accelerate', ['accelerate', 'launch', '--cpu', '-m', 'steve1.train'], 1),
        ('torchrun', ['torchrun', '--nproc_per_node', '2', '-m', 'steve1.train'], 2)):
        r = subprocess.run([*cmd, *cfg, '--name', name], env=env, cwd=repo_root(), capture_output=True, text=True)
        assert r.returncode == 0, r.stderr
        assert read_meta(data_dir('runs', name, 'latest.safetensors'))['record']['processes'] == n
    with pytest.raises(SystemExit) as e: train_cli([*cfg, '--learnrate', '1'])
    said = capsys.readouterr().err
    assert e.value.code == 2 and 'learnrate' in said and 'Traceback' not in said
