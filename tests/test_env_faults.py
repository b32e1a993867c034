"Worlds in processes of their own: killed, stopped, leaking, orphaned; run by old interpreters; held against real specifications"
import json, os, random, select, shutil, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from steve1.base.actions import ACTION_DTYPE, KEYS, noop
from steve1.config import repo_root
from steve1.world.process import EnvFailed, ProcessEnv
from steve1.world.supervised import ProcessVectorEnv, Supervised
from steve1.world.envs import check_env, make_env, make_vec
from steve1.world.vector import one_world
from steve1.world.worker import process_family

FAKES = repo_root()/'tests'/'fake_games'
linux = pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs /proc to find processes')

def faulty(**kw): return ProcessEnv('faulty:Faulty', path=[FAKES], **{**dict(step_timeout=5., wait=False), **kw})

def several(make, n): return ProcessVectorEnv(make, n, (64,64), patience=100, autoreset_mode='Disabled')

def jump(n):
    rows = np.zeros(n, ACTION_DTYPE)
    rows['jump'] = 1
    return rows

def alive(pid):
    "Does it run? (a zombie does not)"
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] not in 'ZX'
    except OSError: return False

def gone(pids, seconds=5):
    "Wait until these processes have ended: those that have not"
    until = time.monotonic()+seconds
    while (left := [p for p in pids if alive(p)]) and time.monotonic() < until: time.sleep(.01)
    return left

def folders(): return set(Path(tempfile.gettempdir()).glob('steve1-world-*'))

class Vandal(threading.Thread):
    "Kills, stops and bloats worlds of a run at random, each world once"
    def __init__(self, envs, n_deeds, seed=0, pause=.25):
        super().__init__(daemon=True)
        self.envs, self.rng, self.pause, self.over, self.seen, self.deeds = (
            envs,
            random.Random(seed),
            pause,
            threading.Event(),
            set(),
            [],
        )
        self.todo = [d for _ in range(n_deeds) for d in ('kill', 'kill guard', 'stop', 'leak')][:n_deeds]
        self.rng.shuffle(self.todo)

    def run(self):
        touched = set()
        while not self.over.wait(self.pause*self.rng.uniform(.5, 1.5)):
            people = [process_family(pid) for e in self.envs() if e and (pid := e.pid)]
            self.seen.update(*people)
            # guard, worker, and the child that the world has started
            playing = [f for f in people if len(f) == 3 and f[0] not in touched]
            if not playing or not self.todo: continue
            guard, worker, _ = self.rng.choice(playing)
            what = self.todo.pop()
            try:
                os.kill(guard if what == 'kill guard' else worker, dict(stop=signal.SIGSTOP,
                    leak=signal.SIGUSR1).get(what, signal.SIGKILL))
            except ProcessLookupError: self.todo.append(what); continue
            touched.add(guard)
            self.deeds.append(what)

@linux
def test_thirty_episodes_under_fire(tmp_path, monkeypatch):
    "Worlds killed, stopped and made to leak at random: every episode is accounted for, no process and no folder is left"
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path)) # another test's worlds are none of its business
    before, n_steps, running = folders(), 20, []
    vandal = Vandal(lambda: running[0].env.envs[:] if running else [], 12)
    # a world can be stopped while it begins anew: that must not take the usual five minutes
    make = lambda: faulty(step_timeout=2., reset_timeout=20., memory_limit=180, child=True, pause=.02)
    with Supervised(several(make, 3), [dict(seed=s) for s in range(30)]) as w:
        running.append(w)
        w.reset()
        vandal.start()
        while w.playing:
            playing = list(w.playing)
            obs, _, lost, _, _ = w.step(jump(3))
            for i in playing:
                if lost[i]: continue
                # no world sees another world's step, or a step twice
                assert obs['inventory']['dirt'][i] == w.playing[i].steps
                if w.playing[i].steps == n_steps: w.end(i)
        vandal.over.set(); vandal.join()
    rows = w.table()
    print({c or 'played out':sum(r['cause'] == c for r in rows) for c in ('','crash','hang','memory')}, vandal.deeds)
    assert [r['index'] for r in rows] == list(range(30)) == [r['seed'] for r in rows]
    assert all((r['steps'] == n_steps) == (r['cause'] == '') for r in rows)
    # each kind was met, and some were spared
    assert {r['cause'] for r in rows} == {'', 'crash', 'hang', 'memory'}
    assert len(vandal.deeds) >= 8 and len(vandal.seen) > 30
    assert gone(vandal.seen) == []
    assert folders() <= before

@linux
def test_blockworld_lives_through_a_kill():
    "The real world, killed under way, is made anew and plays as if nothing had been"
    with make_env('blockworld', seed=np.int64(2), size=(32,32), process=True) as env:
        first = env.reset(arena='lake')['pov']
        for _ in range(3): env.step(dict(forward=1))
        os.kill(process_family(env.pid)[1], signal.SIGKILL)
        with pytest.raises(EnvFailed) as e:
            for _ in range(10): env.step({})
        assert e.value.cause == 'crash' and 'SIGKILL' in e.value.detail
        with pytest.raises(RuntimeError, match='reset'): env.step({})
        assert np.array_equal(env.reset()['pov'], first)
        # numpy's numbers will do
        env.step({k:np.int64(1) for k in ('forward','jump')} | dict(camera=np.array([1,2], np.float32),
            attack=np.bool_(True)))

@linux
@pytest.mark.parametrize('how,state', [(signal.SIGKILL, 'playing'), (signal.SIGKILL, 'hanging'),
    (signal.SIGKILL, 'stopped'), (signal.SIGTERM, 'playing')])
def test_children_die_with_the_parent(how, state):
    "However the program ends that holds the worlds, nothing of them stays behind"
    script = f'''
import sys, time, os, signal
sys.path[:0] = [{str(repo_root())!r}]
from steve1.world.process import ProcessEnv, EnvFailed
from steve1.world.worker import process_family
env = ProcessEnv('faulty:Faulty', path=[{str(FAKES)!r}], child=True, fault={'hang' if state == 'hanging' else ''!r}, at=2)
env.reset(); env.step({{}})
tmp = env._tmp
if {state == 'stopped'}: os.kill(process_family(env.pid)[1], signal.SIGSTOP)
print(tmp, *process_family(env.pid), flush=True)
if {state == 'hanging'}: env.step({{}})
time.sleep(600)
'''
    p = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    tmp, *pids = p.stdout.readline().split()
    assert len(pids) == 3 and all(map(alive, pids)) and os.path.isdir(tmp)
    time.sleep(.1)
    p.send_signal(how); p.wait(10)
    assert gone(pids) == []
    until = time.monotonic()+5
    while os.path.isdir(tmp) and time.monotonic() < until: time.sleep(.01)
    assert not os.path.isdir(tmp)

def test_a_slow_caller_is_not_a_slow_world():
    "A reply that came in time counts, however late it is looked at"
    with faulty(step_timeout=.05) as env:
        env.reset()
        env.begin('step', action=noop())
        select.select([env._replies], [], [], 20)
        time.sleep(.1)
        assert env.finish()[1]['t'] == 1

def test_a_mistake_is_never_retried():
    "Wrong calls are errors at once, cost no episode and no world"
    with Supervised(several(faulty, 2), [dict(seed=1), dict(seed=2)]) as w:
        w.reset()
        pids = [e.pid for e in w.env.envs]
        for bad in (dict(fly=[0,1]), dict(attack=[0,2]), dict(camera=np.zeros((2,1))),
            dict(camera=np.array([[0,0],[0,np.nan]]))):
            with pytest.raises(ValueError): w.step(bad)
        w.step(jump(2))
        assert [e.pid for e in w.env.envs] == pids and [o.steps for o in w.playing.values()] == [1,1] and not w.outcomes
    kw = dict(process=True, vector=dict(autoreset_mode='Disabled'))
    with pytest.raises(ValueError, match='moon'):
        Supervised(make_vec('blockworld', **kw), [dict(seed=1, arena='moon')]).reset()
    with pytest.raises(TypeError, match='colour'):
        Supervised(make_vec('blockworld', colour='red', **kw), [dict(seed=1)]).reset()
    with pytest.raises(ValueError, match='no episodes'): Supervised(several(faulty, 1), [])

# --- replies that make no sense

PLACE = dict(xpos=0., ypos=64., zpos=0., pitch=0., yaw=0.)
OBS = dict(inventory=dict(dirt=1), location_stats=PLACE, isGuiOpen=False)
GOOD = dict(obs=OBS, frame=[64,64,3], info=dict(broken='', placed='', in_water=False, eye_in_water=False))
def reply(**changes): return json.dumps({**GOOD, **changes})+'\n'
def obs(**changes): return reply(obs={**OBS, **changes})

GARBAGE = dict(
    noise='\xff\xfe rubbish\n', cut='{"obs": {"inve\n', empty='\n', nothing='null\n', list='[1, 2]\n',
        text='"KeyboardInterrupt"\n',
    deep='['*200_000+'\n', digits='1'*6000+'\n', no_frame=json.dumps(dict(obs=OBS, info=GOOD['info']))+'\n',
    large_frame=reply(frame=[4000,4000,3]), huge_frame=reply(frame=[10**9,10**9,3]),
        negative_frame=reply(frame=[-64,-64,3]),
    odd_frame=reply(frame=[64,64,4]), float_frame=reply(frame=[64.,64.,3]), text_frame=reply(frame='64x64'),
        flat_frame=reply(frame=[64*64*3]),
    obs_list=reply(obs=[]), no_place=obs(location_stats={}), place_list=obs(location_stats=[1,2]),
        nan=obs(location_stats={**PLACE, 'yaw':float('nan')}),
    infinite=obs(location_stats={**PLACE, 'xpos':float('inf')}),
        text_place=obs(location_stats={**PLACE, 'pitch':'down'}),
    negative_items=obs(inventory=dict(dirt=-1)), half_item=obs(inventory=dict(dirt=.5)),
        items_list=obs(inventory=['dirt']), gui=obs(isGuiOpen='yes'),
    no_info=reply(info=None), info_list=reply(info=[]), broken=reply(info={**GOOD['info'], 'broken':3}),
        water=reply(info={**GOOD['info'], 'in_water':'no'}),
    done=reply(info={**GOOD['info'], 'done':1}), ours=reply(info={**GOOD['info'], 'failure':None}),
        mask=reply(info={**GOOD['info'], '_broken':[]}), deep_info=reply(info={**GOOD['info'], 'x':{'x':{'x':1}}}),
    interrupt='{"error": "KeyboardInterrupt", "text": "stop"}\n', exit='{"error": "SystemExit", "text": "0"}\n',
        builtin='{"error": "print", "text": "0"}\n',
    dunder='{"error": "__import__", "text": "os"}\n', error_list='{"error": ["ValueError"], "text": "x"}\n',
        no_text='{"error": "ValueError"}\n',
    twice=reply()*2, failed_list='{"failed": [1]}\n')

@linux
@pytest.mark.parametrize('what', GARBAGE)
def test_garbage_is_a_failure_of_that_world(what):
    "Whatever a game's process says, its episode fails with a cause, no error of ours is raised, and the next reset brings a new world"
    with faulty(fault='say', say=GARBAGE[what], at=2, only=[1]) as env:
        env.reset(seed=1); env.step({})
        with pytest.raises(EnvFailed) as e: env.step({}); env.step({})
        assert e.value.cause == 'crash' and len(str(e.value)) < 3000
        assert env.pid is None
        assert env.reset(seed=2)['pov'].shape == (64,64,3)
        for _ in range(3): env.step({})

@linux
@pytest.mark.parametrize('fault', ['flood', 'cut'])
def test_a_line_without_end_and_a_picture_cut_short(fault):
    "Neither fills our memory nor kills us"
    with faulty(fault=fault, at=2, only=[1]) as env:
        env.reset(seed=1); env.step({})
        with pytest.raises(EnvFailed): env.step({}); env.step({})
        assert env.reset(seed=2)['pov'].shape == (64,64,3)

@linux
def test_a_run_goes_on_beside_garbage():
    "Episodes of a game that talks nonsense fail with their cause, are replaced, and cost the others nothing"
    make = lambda: faulty(fault='say', say=GARBAGE['interrupt'], at=2, only=[1,3])
    with Supervised(several(make, 2), [dict(seed=s) for s in range(6)], spare=[10,11]) as w:
        w.reset()
        while w.playing:
            playing = list(w.playing)
            lost = w.step(jump(2))[2]
            for i in playing:
                if not lost[i] and w.playing[i].steps == 5: w.end(i)
    assert sorted(o.seed for o in w.outcomes if o.ok) == [0,2,4,5,10,11]
    assert all('unknown kind' in o.detail and o.cause == 'crash' for o in w.outcomes if not o.ok)

@linux
@pytest.mark.parametrize('a,b', [(1, None), (1, [2]), (dict(y=1), 2), (1, .5)], ids=str)
def test_infos_of_several_kinds(a, b):
    "Two worlds may say different things of one name: each keeps its own, and neither ends the other's episode"
    makes = iter([a, b])
    with Supervised(several(lambda: faulty(info=dict(x=next(makes))), 2), [dict(seed=s) for s in range(2)]) as w:
        w.reset()
        infos = w.step(jump(2))[4]
        assert [one_world(infos, i)['x'] for i in range(2)] == [a, b] and not w.outcomes

# --- other interpreters

def interpreters():
    "Pythons from 3.8 on that have numpy; STEVE1_OLD_PYTHON names more, separated by colons"
    found = [p for v in range(8, 13) if (p := shutil.which(f'python3.{v}'))] + os.environ.get('STEVE1_OLD_PYTHON',
        '').split(':')
    good = {}
    for p in filter(None, found):
        r = subprocess.run([p, '-c', 'import sys, numpy; print(sys.version_info[:2], numpy.__version__)'],
            capture_output=True, text=True)
        if not r.returncode: good.setdefault(r.stdout.strip(), p)
    return good

@pytest.mark.parametrize('name', ['minerl', 'minestudio'])
def test_old_interpreters(name, tmp_path, monkeypatch):
    "The games' adapters keep the contract in every Python here that has numpy (this one, if there is no other)"
    monkeypatch.setenv('MINESTUDIO_DIR', str(tmp_path))
    (tmp_path/'engine/build/libs').mkdir(parents=True)
    (tmp_path/'engine/build/libs/mcprec-6.13.jar').touch()
    for version,python in (interpreters() or {'this':sys.executable}).items():
        with make_env(name, seed=3, size=(128,128), python=python, path=[FAKES], step_timeout=60.) as env:
            check_env(env, n=3)

@pytest.mark.parametrize('fault,says', [('lost', 'Connection timed out'), ('typeerror', 'TypeError in the game')])
def test_a_broken_game_is_a_failure(fault, says, monkeypatch):
    "MineRL's random observation after a lost connection never reaches the caller, nor does its TypeError look like ours"
    monkeypatch.setenv('FAKE_FAULT', fault)
    monkeypatch.setenv('FAKE_AT', '3')
    with make_env('minerl', python=sys.executable, path=[FAKES]) as env:
        env.reset()
        env.step({}); env.step({})
        with pytest.raises(EnvFailed, match=says): env.step({})
        env.reset()

def test_a_run_that_lost_all_its_worlds_says_why(tmp_path, monkeypatch, capsys):
    "Table, command and the last cells of the notebook show the cause of every world; no film is asked for"
    from steve1.acting.goals import System
    from steve1.rollout import RolloutConfig, rollout_cli, run_rollouts
    setup = dict(STEVE1_DATA=str(tmp_path), STEVE1_MINERL_PYTHON=sys.executable, PYTHONPATH=str(FAKES),
        FAKE_FAULT='lost', FAKE_AT='3')
    for k,v in setup.items(): monkeypatch.setenv(k, v)
    System.random(tmp_path/'system')
    cfg = RolloutConfig(name='lost', prompts=('dig','swim'), seeds=(1,), n_steps=6, height=90, env='minerl',
        weights=str(tmp_path/'system'))
    table = run_rollouts(cfg)
    assert len(table) == 2 and all('Connection timed out' in why for why in table.failed)
    assert not (tmp_path/'runs'/'lost'/'contact_sheet.png').exists()
    cells = json.loads((repo_root()/'nbs'/'07_rollout.ipynb').read_text())['cells']
    cell, = [s for c in cells if 'def look(table, cfg):' in (s := ''.join(c['source']))]
    shown = []
    exec(cell, dict(table=table, cfg=cfg, pd=pd, display=lambda t: shown.append(t._repr_html_())))
    assert len(shown) == 1 and shown[0].count('Connection timed out!') == 2
    words = ['dig', '--name', 'said', '--n_steps', '6', '--height', '90', '--env', 'minerl', '--weights', cfg.weights]
    with pytest.raises(SystemExit) as e: rollout_cli(words)
    assert e.value.code == 1 and 'Connection timed out' in capsys.readouterr().out

def test_the_fake_is_minerls():
    "What stands in for MineRL has the keys that MineRL has"
    spaces = json.loads((repo_root()/'tests'/'golden'/'minerl_spaces.json').read_text())
    assert set(spaces['action_space']) == {*KEYS, 'camera'}
    assert spaces['observation_space']['pov']['shape'] == [360,640,3]

# --- the real specifications, where these can be imported without Java

SPEC = '''
import importlib, json, os, sys, types, warnings
import numpy as np
root, worker, package, name = sys.argv[1:]
if package == 'minestudio.simulator.minerl':             # its simulator's __init__ wants torch; the specification does not
    import minestudio
    sim = types.ModuleType('minestudio.simulator')
    sim.__path__ = [os.path.join(os.path.dirname(minestudio.__file__), 'simulator')]
    sys.modules['minestudio.simulator'] = sim
spec = importlib.import_module(package+'.herobraine.env_specs.human_survival_specs').HumanSurvival
sys.path.insert(0, worker)
import worker
settings = {k:v for k,v in worker.SETTINGS.items()}
env = spec(**settings)
assert json.loads(json.dumps(settings)) == dict(fov_range=[70,70], gamma_range=[2,2], guiscale_range=[1,1], resolution=[640,360], cursor_size_range=[16.,16.], frameskip=1)
xml = env.to_xml()
for tag,value in dict(FOVSetting='70', GammaSetting='2', GuiScale='1', FakeCursorSize='16').items():
    assert tag in xml and value in xml.split(tag)[1][:60], (tag, xml.split(tag)[1][:60] if tag in xml else '')

class Adapter(getattr(worker, name)):                   # the adapter, with the specification in place of the game
    def open(self): return env, set(env.observation_space['mine_block'].spaces)
    def start(self): return self.report()
    def play(self, action):
        known = {h.to_string() for h in env.actionables}
        assert set(action) <= known, set(action)-known
        assert known-set(action) <= {'chat', 'voxels', 'mobs'}, known-set(action)
        for k,v in action.items(): assert v in env.action_space.spaces[k], (k, v)
        self.told = '\\n'.join(h.to_hero(action[h.to_string()]) for h in env.actionables if h.to_string() in action)
        return self.report(), False
    malmo = dict(inventory=[dict(slot_id=0, index=0, type='dirt', quantity=5), dict(slot_id=1, index=1, type='none', quantity=0)], isGuiOpen=True,
                 xpos=1.5, ypos=64., zpos=-2., pitch=10., yaw=20., mine_block={}, use_item={}, custom={}, air=300)
    def report(self):
        hero = dict(self.malmo, pov=np.arange(360*640*3, dtype=np.uint8).tobytes())
        return {h.to_string():h.from_hero(hero) for hs in (env.observables, env.monitors) for h in hs}

game = Adapter()
obs = game.reset()
assert obs['pov'].shape == (360,640,3) and obs['pov'].dtype == np.uint8, obs['pov'].shape
assert obs['inventory'] == dict(dirt=5), obs['inventory']
assert obs['isGuiOpen'] is True
assert {k:obs['location_stats'][k] for k in ('xpos','ypos','zpos','pitch','yaw')} == dict(xpos=1.5, ypos=64., zpos=-2., pitch=10., yaw=20.)
game.malmo = dict(game.malmo, mine_block=dict(dirt=2), use_item=dict(apple=1), custom=dict(walk_under_water_one_cm=30))
keys = json.loads(sys.stdin.read())
_, info = game.step(dict(keys, forward=1, camera=[1.5,-2.]))
assert (info['broken'], info['placed'], info['eye_in_water']) == ('dirt', '', True), info
assert 'forward 1' in game.told and 'camera 1.5 -2.0' in game.told and 'jump 0' in game.told, game.told
game.malmo = dict(game.malmo, use_item=dict(apple=1, dirt=1))
_, info = game.step(dict(keys, camera=[0.,0.]))
assert (info['broken'], info['placed'], info['in_water']) == ('', 'dirt', False), info
print('as specified')
'''

@pytest.mark.parametrize('package,name', [('minerl', 'MineRL'), ('minestudio.simulator.minerl', 'MineStudio')])
def test_adapter_against_the_real_specification(package, name, tmp_path):
    "Every key that we send exists there in that type, and what its own handlers make of a report of the game is read as meant"
    python = os.environ.get(f'STEVE1_{name.upper()}_PYTHON', sys.executable)
    has = subprocess.run([python, '-c', f'import importlib.util as u; import {package.split(".")[0]}'],
        capture_output=True)
    if has.returncode: pytest.skip(f'{python} has no {name}: set STEVE1_{name.upper()}_PYTHON')
    env = dict(os.environ, MINESTUDIO_DIR=str(tmp_path))
    r = subprocess.run([python, '-c', SPEC, str(repo_root()), str(repo_root()/'steve1'), package, name],
        input=json.dumps({k:0 for k in KEYS}), env=env, capture_output=True, text=True)
    assert r.returncode == 0 and 'as specified' in r.stdout, r.stderr[-2000:]

@linux
def test_ctrl_c_ends_a_rollout_in_one_line(tmp_path):
    "An interrupted run says so in one line, with the shell's exit status, and leaves no half-written film"
    code = "from steve1.rollout import rollout_cli; rollout_cli()"
    words = ['dig a hole', '--n_steps', '100000', '--height', '90', '--name', 'stopped']
    env = dict(os.environ, STEVE1_DATA=str(tmp_path), OMP_NUM_THREADS='1')
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, *words], env=env, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    folder, until = tmp_path/'runs'/'stopped', time.monotonic()+90
    while not list(folder.glob('.tmp-*.mp4')) and p.poll() is None and time.monotonic() < until: time.sleep(.05)
    time.sleep(.5)
    p.send_signal(signal.SIGINT)
    _, said = p.communicate(timeout=60)
    if 'make mini' in said: pytest.skip('no weights to play with')
    assert (p.returncode, said.strip().splitlines()) == (130, ['steve1_rollout: stopped'])
    assert [f.name for f in folder.iterdir() if f.name != '.lock'] == []
