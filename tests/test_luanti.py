"""Luanti played for real, in as few starts as possible: fresh games side by side are equal, a lost one is replaced, nothing is left."""
import os, signal, subprocess, sys, tempfile, time
from pathlib import Path
import gymnasium, numpy as np, pytest
import steve1.world.envs # noqa: F401 (registers the environments)
from steve1.base.actions import ACTION_DTYPE
from steve1.luanti.install import LUANTI_INSTALL, luanti_parts
from steve1.world.mirror import Mirror, WATCH
from steve1.world.blocks import Kind
from steve1.world.vector import one_world
from steve1.world.worker import process_family

pytestmark = pytest.mark.skipif(not all(luanti_parts().values()), reason=f'no Luanti here: `{LUANTI_INSTALL}`')
SMALL = dict(size=(64,64), screen=(180,320), view=24, arena='meadow', items=dict(dirt=12), watch=WATCH)
N = 45 # steps

def rows(t):
    "Two equal actions: look down and dig, then walk, turn and jump; reproducible"
    out = np.zeros(2, ACTION_DTYPE)
    if t<8: out['camera'] = 10, 0
    elif t<26: out['attack'] = 1
    else:
        out['forward'], out['jump'], out['use'] = np.random.default_rng(t//5).random(3)<(.9,.5,.2)
        out['camera'] = np.random.default_rng(t).normal(0, 5, 2)
    return out

def command(pid):
    try: return Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')[0].decode()
    except OSError: return ''

def ours(pid): return {p:Path(command(p)).name for p in process_family(pid)}

def left_over(folders):
    "Processes and folders that these games left"
    alive = [p for p in Path('/proc').glob('[0-9]*/environ') if any(f.encode() in read(p) for f in folders)]
    return alive + [f for f in folders if os.path.exists(f)]

def read(path):
    try: return path.read_bytes()
    except OSError: return b''

def wait_until_gone(folders, seconds=10):
    end = time.monotonic()+seconds
    while (left := left_over(folders)) and time.monotonic()<end: time.sleep(.05)
    return left

@pytest.fixture(scope='module')
def played():
    "Two fresh games with one seed, the same actions: (environment, observations, infos)"
    envs = gymnasium.make_vec('steve1/Luanti-v0', num_envs=2, autoreset_mode='Disabled', **SMALL)
    try:
        obs, _ = envs.reset(seed=[5,5])
        seen, infos = [obs], []
        for t in range(N):
            obs, *_, info = envs.step(rows(t))
            seen.append(obs); infos.append(info)
        yield envs, seen, infos
    finally: envs.close()

def test_observations_fit_gymnasiums_spaces(played):
    envs, seen, infos = played
    assert all(obs in envs.observation_space for obs in seen)
    assert seen[0]['inventory']['dirt'].tolist()==[12,12] and seen[0]['pov'].std()>20

def test_fresh_games_side_by_side_are_equal(played):
    _, seen, infos = played
    for obs in seen:
        assert (obs['pov'][0]==obs['pov'][1]).all()
        assert all(v[0]==v[1] for part in (obs['location_stats'], obs['inventory']) for v in part.values())
    assert all(i[k][0]==i[k][1] for i in infos for k in ('broken','placed','in_water'))
    assert not (seen[0]['pov'][0]==seen[-1]['pov'][0]).all()

def test_the_world_answers(played):
    _, seen, infos = played
    assert any(i['broken'][0] for i in infos), 'nothing was broken in a meadow that was attacked'
    assert max(o['location_stats']['pitch'][0] for o in seen)>60
    moved = [np.hypot(o['location_stats']['xpos'][0]-seen[0]['location_stats']['xpos'][0],
        o['location_stats']['zpos'][0]-seen[0]['location_stats']['zpos'][0]) for o in seen]
    assert 1<max(moved)<N*.3, moved

def test_scripted_players_see_its_blocks(played):
    _, seen, infos = played
    mirror = Mirror()
    mirror.start(one_world(seen[0], 0))
    feet = lambda: [int(np.floor(v)) for v in (mirror.p.x, mirror.p.y-.3, mirror.p.z)]
    kinds, broke = [], []
    for t,(obs,info) in enumerate(zip(seen[1:], infos)):
        before = mirror.blocks.copy()
        mirror.update(one_world(obs, 0), one_world(info, 0), rows(t)[0])
        x, y, z = feet()
        kinds.append(Kind(mirror.blocks[x&127,y,z&127]))
        if info['broken'][0]: broke.append((before>mirror.blocks).sum())
    assert kinds[0] in (Kind.GRASS, Kind.DIRT, Kind.SAND), 'the player stands on what the mirror has under its feet'
    assert broke[0]>=1 and mirror.slots[0].tolist()[1]==1
    assert (mirror.blocks==Kind.TALL_GRASS).sum()>5 and np.isin((Kind.POPPY, Kind.DANDELION), mirror.blocks).any()

def test_window_of_the_inventory(played):
    envs, _, _ = played
    press = np.zeros(2, ACTION_DTYPE)
    def step(**keys):
        press[:] = 0
        for k,v in keys.items(): press[k] = v
        return envs.step(press)[0]['isGuiOpen'].tolist()
    assert [step(inventory=1), step(), step(inventory=1), step(), step()][1:5:3]==[[1,1],[0,0]]
    assert envs.picture(0, (90,160)).shape==(90,160,3)

def test_a_killed_game_is_replaced(played):
    envs, _, _ = played
    family, folder = ours(envs.envs[0].pid), envs.envs[0]._tmp
    game = [p for p,name in family.items() if name in ('minetest','luanti')]
    assert len(game)==1 and 'Xvfb' in family.values()
    os.kill(game[0], signal.SIGKILL)
    _, _, terminated, _, infos = envs.step(rows(0))
    assert terminated.tolist()==[True,False] and infos['failure'][0].startswith('crash')
    assert not left_over([folder]), 'the screen of the lost game and its files are gone'

def test_nothing_is_left_when_the_parent_is_killed():
    code = 'from steve1.world.envs import make_env; import sys; e = make_env("luanti", screen=(180,320)); print(e._tmp, flush=True); sys.stdin.read()'
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = p.stdout.readline().strip()
    assert folder and 'Xvfb' in ours(p.pid).values()
    p.kill(); p.wait()
    for f in (p.stdin, p.stdout): f.close()
    assert wait_until_gone([folder])==[]

def test_nothing_is_left_at_the_end(played):
    envs, _, _ = played
    folders = [e._tmp for e in envs.envs]
    envs.close()
    assert wait_until_gone(folders)==[]
    assert not list(Path('/dev/shm').glob('luanti*')) and not list(Path(tempfile.gettempdir()).glob('luanti-*'))
