"Faults of a training run: kills at random moments, a full disk, damage, two runs of one name; what its checkpoints say"
import os, random, signal, time
import pytest, torch
from steve1.config import data_dir, repo_root
from steve1.base.checkpoints import load_tensors, read_meta
from steve1.base.files import sole_writer
from steve1.base.untrusted import safe_torch_load
from steve1.policy import Policy
from steve1.train import Trainer, train
from steve1.training.launch import launch
from steve1.training.runs import TrainingStopped
from train_runs import TINY, assert_same, config, data, fork, run

def test_twenty_kills(fork):
    "Killed twenty times at random moments, half of them without warning, a run ends as if nothing had been"
    # no end in sight
    cfg = TINY.replace(name='killed', n_frames=10**9, schedule='constant', save_every=3*64, snapshot_every=40*64)
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
    f = data_dir('runs', 'damaged', 'state', 'main.pt')
    f.write_bytes(f.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match='damaged/state is damaged; falling back'): train(cfg.replace(name='damaged'))
    x, y = (load_tensors(data_dir('runs', n, 'latest.safetensors'))[0] for n in ('undamaged', 'damaged'))
    assert all(torch.equal(x[k], y[k]) for k in x)

@pytest.mark.parametrize('limit', [500_000, 2_000_000]) # neither the checkpoint nor the state fits; the state does not
def test_full_disk(fork, tmp_path, limit):
    "Where nothing more can be written a run stops, says so, and goes on when there is room"
    cfg = TINY.replace(name='room', n_frames=20*64, val_every=10*64)
    if not data_dir('runs', 'room').exists(): run(fork, cfg)
    p = fork('run_on_a_full_disk', cfg.replace(name=f'full{limit}').to_dict(), 9, limit, SAID=str(tmp_path/'said'))
    p.join()
    assert p.exitcode == 1 and 'Make room' in (tmp_path/'said').read_text()
    assert safe_torch_load(data_dir('runs', f'full{limit}', 'state', 'main.pt'))['step'] == 8
    run(fork, cfg.replace(name=f'full{limit}'))
    assert_same('room', f'full{limit}')

def test_two_runs_of_one_name(data):
    "A run belongs to one process: a second training, or a launch, of the same name is refused and touches nothing"
    cfg = TINY.replace(name='taken', n_frames=4*64)
    train(cfg)
    before = {p.name:p.stat().st_mtime_ns for p in data_dir('runs', 'taken').iterdir() if p.name != '.lock'}
    def again(trainer):
        if trainer.step == 1:
            with pytest.raises(RuntimeError, match='another process is writing to .*taken2'):
                train(cfg.replace(name='taken2'))
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

def logits(policy):
    g = torch.Generator().manual_seed(0); c = policy.cfg
    img, goal = torch.randint(0, 256, (2,9,*c.image_size,3), dtype=torch.uint8, generator=g), torch.randn(2, 9,
        c.d_goal, generator=g)
    with torch.no_grad(): out, _ = policy.eval()(img, goal, torch.zeros(2, 9, dtype=torch.bool))
    return torch.cat([out.buttons, out.camera, out.value[...,None]], -1)

def test_every_checkpoint_says_the_same(data):
    "save, load: the same logits for latest, best, snapshots, published names and half precision"
    cfg = TINY.replace(name='kinds', n_frames=4*64, snapshot_every=2*64, policy_set=dict(trunk='impala',
        channels=(4,8,8)))
    kept = {}
    def note(t):
        with t.avg.applied():
            kept[t.frames] = logits(t.policy); t.policy.train()
    train(cfg, note)
    folder = data_dir('runs', 'kinds')
    for name,frames in (('latest', 256), ('snapshot_128', 128), ('snapshot_256', 256),
        ('best', read_meta(folder/'best.safetensors')['record']['frames'])):
        assert torch.equal(logits(Policy.load(folder/f'{name}.safetensors')), kept[frames]), name
    policy = Policy.load(folder/'latest.safetensors')
    torch.save({f'policy.{k}':v for k,v in policy.to_official().items()}, folder/'latest.weights')
    assert torch.equal(logits(Policy.from_official(folder/'latest.weights', policy.cfg)), kept[256])
    policy.half().float().save(folder/'half.safetensors')
    assert torch.equal(logits(policy),
        logits(Policy.load(folder/'half.safetensors'))) and (logits(policy)-kept[256]).abs().max() < .05

def test_what_ships_says_the_same(tmp_path):
    "The half-precision weights that ship are read, written in full, and read again to the same logits"
    shipped = repo_root()/'data'/'weights'/'policy.safetensors'
    if not shipped.exists(): pytest.skip('no shipped weights here: `git restore data/weights` brings them back')
    policy = Policy.load(shipped)
    policy.save(tmp_path/'again.safetensors')
    assert torch.equal(logits(policy), logits(Policy.load(tmp_path/'again.safetensors')))
