"Toy runs that the tests of training share: data, processes that can be killed, and when two runs are the same"
import multiprocessing, os
import numpy as np, pytest, torch, yaml
from steve1.config import data_dir, repo_root
from steve1.base.checkpoints import load_tensors
from steve1.episodes import EpisodeWriter
from steve1.policy import PolicyConfig
from steve1.data.sampling import make_sampling
from steve1.training.recipe import TrainConfig
from steve1.training.runs import RunFolder
torch.set_num_threads(1)

TINY = TrainConfig.preset('tiny', log_every=3, ema=.9, augment=True, val_every=20*64, save_every=4*64)

CHILD = """
import os, resource
import accelerate, torch._dynamo, torch.distributed.fsdp, torch.utils.tensorboard # else each process would import them
from steve1.train import TrainConfig, train, train_cli

SERVER = os.getpid()
def assert_forked(): assert os.getpid() != SERVER, 'this process imported everything itself: the server did not find this file'

def run(env, argv): # what a process of its own does
    assert_forked()
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
        m.setenv('STEVE1_DATA', str(root))
        m.setenv('OMP_NUM_THREADS', '1')
        # where the server finds `train_child`
        m.setenv('PYTHONPATH', os.pathsep.join([str(root), str(repo_root()), os.environ.get('PYTHONPATH', '')]))
        (root/'train_child.py').write_text(CHILD)
        m.syspath_prepend(str(root))
        pc, rng = PolicyConfig.preset('tiny'), np.random.default_rng(0)
        for e in range(8):
            with EpisodeWriter(root/'datasets'/'tiny'/f'{e:03d}', pc.image_size, seed=e, source='toy') as w:
                w.add_many(rng.integers(0, 255, (90, *pc.image_size, 3), dtype=np.uint8),
                    dict(forward=rng.integers(0, 2, 90), camera=rng.choice([0., 3.], (90,2))))
            embeds = rng.standard_normal((90, pc.d_goal))
            embeds[:15] = np.nan
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
        p = ctx.Process(target=getattr(train_child, f), args=(dict(STEVE1_DATA=str(data), **env), *args))
        p.start()
        return p
    return start

def config(cfg):
    "The config in a file, as a command line takes it"
    path = data_dir('runs', f'{cfg.name}.yaml')
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(cfg.to_dict(), sort_keys=False).replace('!!python/tuple', ''))
    return ['--config', str(path)]

def run(fork, cfg):
    p = fork('run', config(cfg))
    p.join(); assert p.exitcode == 0

# all but times
def rows(name): return [{k:v for k,v in r.items() if not k.startswith('speed/')} for r in RunFolder(name).metrics()]

def assert_same(a, b):
    "Two runs left the same files, weights and rows, to the bit"
    names = [sorted(p.name for p in data_dir('runs', n).glob('*.safetensors')) for n in (a,b)]
    assert names[0] == names[1] and 'latest.safetensors' in names[0]
    for f in names[0]:
        x, y = (load_tensors(data_dir('runs', n, f))[0] for n in (a,b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), f
    assert rows(a) == rows(b)
