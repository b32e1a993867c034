"""Luanti killed or stopped at random moments: every episode is accounted for, the lost one by its cause, and nothing is left"""
import json, os, random, signal, time
from contextlib import suppress
from pathlib import Path
import harness

LIMIT = 900.
EPISODES, STEPS, GAMES = 4, 12, 2
SMALL = dict(screen=(90,160), view=16, size=(16,16), step_timeout=8., reset_timeout=120.)
CAUSES = '', 'crash', 'hang'

def play(case):
    "A list of short episodes in two games; the outcomes are printed"
    import numpy as np
    from steve1.base.actions import ACTION_DTYPE
    from steve1.world.games import LuantiEnv
    from steve1.world.supervised import ProcessVectorEnv, Supervised
    make = lambda: LuantiEnv(wait=False, **SMALL)
    envs = ProcessVectorEnv(make, GAMES, SMALL['size'], autoreset_mode='Disabled', patience=100)
    with Supervised(envs, [dict(seed=case['seed']+k) for k in range(EPISODES)]) as worlds:
        worlds.reset()
        rows = np.zeros(GAMES, ACTION_DTYPE)
        rows['forward'] = 1
        while worlds.playing:
            worlds.step(rows)
            for i,o in list(worlds.playing.items()):
                if o.steps >= STEPS: worlds.end(i)
        print('ROWS', json.dumps(worlds.table()))

def victims(pid, kind):
    "Processes of a kind that descend from a process: the game, its screen, or the worker that drives both"
    family = harness.descendants(pid)
    if kind != 'worker':
        names = ('minetest', 'luanti') if kind == 'game' else ('Xvfb',)
        return [p for p,c in family.items() if Path(c.split(' ')[0]).name in names]
    def parent(p):
        with suppress(OSError): return int(Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[1])
    workers = [p for p,c in family.items() if 'worker.py' in c]
    return [p for p in workers if parent(p) in workers]     # its guard has the same command line

def cases(rng):
    from steve1.luanti.install import luanti_parts
    while all(luanti_parts().values()):
        hits = [dict(after=rng.uniform(0, 3), kind=rng.choice(('game', 'game', 'game', 'screen', 'worker')),
            how=rng.choice(('SIGKILL', 'SIGKILL', 'SIGSTOP'))) for _ in range(4)]
        yield dict(seed=rng.randrange(10**6), hits=hits)

def strike(child, case):
    "Kill or stop what the case says when it says so; what was hit"
    rng, done = random.Random(case['seed']), []
    for h in case['hits']:
        until = time.monotonic()+h['after']
        while child.alive() and time.monotonic() < until: time.sleep(.02)
        while child.alive() and not (there := victims(child.pid, h['kind'])): time.sleep(.02)   # the next game starts
        if not child.alive(): break
        with suppress(ProcessLookupError):
            os.kill(rng.choice(there), getattr(signal, h['how']))
            done.append(f"{h['kind']} {h['how']}")
    return done

def run(case):
    temp = Path(os.environ['TMPDIR'])
    before, shared = set(temp.iterdir()), harness.shared_memory()
    child = harness.fork(play, case)
    hits = strike(child, case)
    status = child.wait(600)
    if status: return f"{'hang' if status == 'hang' else 'ended'}: {status}: {child.text()[-400:]}"
    rows = json.loads(next(l for l in child.text().splitlines() if l.startswith('ROWS'))[5:])
    if [r['index'] for r in rows] != list(range(EPISODES)): return f"missing: {[r['index'] for r in rows]}"
    if bad := [r for r in rows if (r['cause'] or '') not in CAUSES or not r['cause'] and r['steps'] != STEPS]: return f'wrong: {bad}'
    lost = sum(bool(r['cause']) for r in rows)
    with open(harness.campaign_folder()/'hits.jsonl', 'a') as f:
        f.write(json.dumps(dict(seed=case['seed'], hits=hits, causes=[r['cause'] for r in rows]))+'\n')
    if lost > len(hits): return f'lost without a hit: {lost} episodes, {hits}'
    if left := harness.outliving(): return f'outlives: {left}'
    if left := set(temp.iterdir())-before: return f'leftover: {sorted(p.name for p in left)}'
    if left := harness.shared_memory()-shared: return f'shared memory: {sorted(left)}'
    return 'ok'
