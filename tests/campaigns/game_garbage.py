"""Garbage from a game's process: that episode fails or its values are of the right kinds, and the run goes on"""
import os
from pathlib import Path
import numpy as np
import harness

LIMIT = 240.
WORLDS = [harness.ROOT/'tests'/'campaigns', harness.ROOT/'tests'/'fake_games']
EPISODES, STEPS, RUDE = 4, 4, [1, 2]

def wrong_kinds(obs, infos):
    "What is not as the interface says, of one observation of all worlds"
    bad = []
    if obs['pov'].dtype != np.uint8 or obs['pov'].shape[1:] != (64,64,3):
        bad.append(f"pov {obs['pov'].dtype} {obs['pov'].shape}")
    for k,v in obs['location_stats'].items():
        if v.dtype != np.float64 or not np.isfinite(v).all(): bad.append(f'{k} {v}')
    for k,v in obs['inventory'].items():
        if not isinstance(k, str) or v.dtype != np.int64 or (v < 0).any(): bad.append(f'{k} {v}')
    return bad

def play(case):
    "Episodes of which some are rude; the exit status is what the campaign looks at"
    from steve1.base.actions import ACTION_DTYPE
    from steve1.world.process import ProcessEnv
    from steve1.world.supervised import ProcessVectorEnv, Supervised
    make = lambda: ProcessEnv('_rude:Rude', path=WORLDS, step_timeout=4., reset_timeout=30., wait=False,
        rude=case['seed'], seeds=RUDE, call=case['call'], at=case['at'])
    envs, actions = ProcessVectorEnv(make, 2, (64,64), autoreset_mode='Disabled', patience=100), np.zeros(2,
        ACTION_DTYPE)
    with Supervised(envs, [dict(seed=s) for s in range(EPISODES)]) as worlds:
        worlds.reset()
        while worlds.playing:
            obs, _, _, _, infos = worlds.step(actions)
            if bad := wrong_kinds(obs, infos):
                print('WRONG', bad); os._exit(3)
            for i,o in list(worlds.playing.items()):
                if o.steps >= STEPS: worlds.end(i)
        rows = worlds.table()
    for r in rows: print(r)
    honest = [r for r in rows if r['seed'] not in RUDE]
    if len(rows) != EPISODES or any(r['cause'] for r in honest): os._exit(4)

def cases(rng):
    while True: yield dict(call=rng.choice(('step', 'step', 'reset')), at=rng.randint(1, 3), seed=rng.randrange(10**6))

def run(case):
    temp = Path(os.environ['TMPDIR'])
    before = set(temp.iterdir())
    child = harness.fork(play, case, memory=600)
    status = child.wait(180)
    if status == 3: return f'wrong values: {child.last()}'
    if status == 4: return f'honest episode lost: {child.text()[-500:]}'
    if status: return f"{'hang' if status == 'hang' else 'ended'}: {status}: {child.text()[-400:]}"
    if left := harness.outliving(): return f'outlives: {left}'
    if left := set(temp.iterdir())-before-{child.said}: return f'leftover: {sorted(p.name for p in left)}'
    return 'ok'
