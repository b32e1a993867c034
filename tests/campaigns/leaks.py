"""Rollouts, films, episodes, validations, training and errors, hundreds of times: memory, open files, threads, processes and folders stay as they were"""
import contextlib, gc, json, os, shutil, tempfile, warnings
from pathlib import Path
import harness
from harness import ROOT, SAMPLE

LIMIT = 400.
SECONDS = 20.   # for the repetitions of a case
STATE = {}

def held():
    "What this process holds"
    gc.collect()
    status = dict(l.split(':', 1) for l in Path('/proc/self/status').read_text().splitlines() if ':' in l)
    return dict(mb=int(status['VmRSS'].split()[0])/1024, threads=int(status['Threads']),
        files=len(os.listdir('/proc/self/fd')), processes=len(harness.descendants()))

def left():
    "Folders, except a cache of torch, and shared memory"
    return {f'temp {p}' for p in os.listdir(tempfile.gettempdir())
        if not p.startswith(('torchinductor', 'said'))} | {f'shm {p}' for p in harness.shared_memory()}

@contextlib.contextmanager
def expected(*errors):
    try: yield
    except errors: pass

def prepare(root):
    "What the repetitions work on"
    import numpy as np, torch
    from steve1.acting.goals import System
    from steve1.data.contractor import write_contractor
    from steve1.episodes import Episode
    torch.set_num_threads(1)
    harness.toy_data(root)
    s = dict(root=root, system=System.load(System.random(root/'sys')), toys=sorted((root/'datasets'/'tiny').iterdir()))
    write_contractor(Episode(SAMPLE/'500000'), root/'8.0'/'r', size=(90,160), stop=40)
    (root/'8.0'/'half.mp4').write_bytes((root/'8.0'/'r.mp4').read_bytes()[:-400])
    (root/'cut.mp4').write_bytes((SAMPLE/'500000'/'frames.mp4').read_bytes()[:9000])
    shutil.copytree(SAMPLE/'500000', root/'bent')
    shutil.copytree(SAMPLE/'500000', root/'own')
    # embedded again and again, in a width that training does not expect of the toys
    shutil.copytree(root/'datasets'/'tiny', root/'embedded')
    s['own'] = sorted((root/'embedded').iterdir())
    data = bytearray((root/'bent'/'frames.mp4').read_bytes())
    data[20000:20600] = bytes(600)
    (root/'bent'/'frames.mp4').write_bytes(data)
    s['noise'] = np.zeros((4,32,32,3), np.uint8)
    return s

# --- what is repeated: (state, number of the repetition) -> None

def case_of(s, i):
    from steve1.acting.schedules import make_case
    return make_case(s['system'].no_goal(), i)

def rollouts(s, i):
    from steve1.rollout import rollout
    rollout(s['system'].policy, [case_of(s, i)], 4)

def films(s, i):
    from steve1.rollout import film_rollout
    film_rollout(s['system'].policy, [case_of(s, i)], [s['root']/f'f{i%3}.mp4'], 3, (90,160))

def broken_films(s, i):
    from steve1.rollout import film_rollout
    with expected(OSError): film_rollout(s['system'].policy, [case_of(s, i)], [Path('/proc/no/film.mp4')], 3, (90,160))

def episodes(s, i):
    from steve1.data.generate import make_episode
    make_episode(s['root']/'gen'/f'{i}', 'steve1.world.experts:play', i, 20, (32,32))
    shutil.rmtree(s['root']/'gen'/f'{i}')

def broken_writers(s, i):
    from steve1.episodes import EpisodeWriter
    with expected(KeyError):
        with EpisodeWriter(s['root']/'err', (32,32)) as w:
            w.add_many(s['noise'], dict(jump=[0]*4)); raise KeyError

def validations(s, i):
    from steve1.episodes import validate_episode
    validate_episode(s['toys'][i % len(s['toys'])])

def faulty_validations(s, i):
    from steve1.episodes import episode_faults
    list(episode_faults(s['root']/'bent'))

def readers(s, i):
    from steve1.base.video import VideoReader
    with VideoReader(SAMPLE/'500000'/'frames.mp4') as v: v.read(100, 104)

def cut_readers(s, i):
    from steve1.base.video import VideoReader
    with expected(ValueError): VideoReader(s['root']/'cut.mp4').read(0, 300)
    with expected(ValueError): list(VideoReader.all_frames(s['root']/'cut.mp4'))

def streams(s, i):
    from steve1.dataset import ChunkStream, DataConfig
    ChunkStream(s['toys'], DataConfig(T=16, max_gap=40, seed=i), batch=4).batch(i)

def one_stream(s, i):
    from steve1.dataset import ChunkStream, DataConfig
    if 'stream' not in s: s['stream'] = ChunkStream(s['toys'], DataConfig(T=16, max_gap=40), batch=4)
    for j in range(5): s['stream'].batch(5*i+j)

def conversions(s, i):
    from steve1.data.contractor import ContractorConfig, convert_contractor
    r = s['root']/'8.0'
    convert_contractor(r/'r.mp4', r/'r.jsonl', s['root']/'c', ContractorConfig(size=(32,32)))
    shutil.rmtree(s['root']/'c')
    with expected(ValueError): convert_contractor(r/'half.mp4', r/'r.jsonl', s['root']/'c')

def embeddings(s, i):
    from steve1.data.embed import embed_episode
    embed_episode(s['own'][i % len(s['own'])], s['system'].clip)

def worlds(s, i):
    from steve1.world.process import EnvFailed, ProcessEnv
    env = ProcessEnv('faulty:Faulty', path=[ROOT/'tests'/'fake_games'], fault=('die', 'raise', '')[i%3], at=2,
        step_timeout=10)
    with expected(EnvFailed):
        env.reset()
        env.step({}); env.step({})
    env.close()

def loads(s, i):
    from steve1.acting.goals import System
    System.load(s['root']/'sys')

def training(s, i):
    from steve1.train import train
    from steve1.training.recipe import TrainConfig
    train(TrainConfig.preset('tiny', n_frames=2*64, resume=False).replace(name='leak'))

# repetitions at most, and what may grow in MB
WORK = dict(rollouts=(200, 40), films=(150, 40), broken_films=(100, 40), episodes=(60, 40),
    broken_writers=(200, 40), validations=(150, 40), faulty_validations=(60, 40), readers=(200, 40),
    cut_readers=(150, 40),
    streams=(200, 40), one_stream=(300, 40), conversions=(60, 40), embeddings=(100, 40), worlds=(40, 40),
        loads=(60, 40), training=(40, 80))

def repeat(what, n, said):
    "In a child: the growth from the fifth part of the repetitions to their end"
    import time
    warnings.simplefilter('ignore')
    s, marks, start, i = STATE, [], time.monotonic(), 0
    for i in range(n):
        globals()[what](s, i)
        took = time.monotonic()-start
        if not marks and i > 4 and (i >= n//5 or took > SECONDS/3): marks.append(held())
        if marks and i > 14 and took > SECONDS: break
    s.pop('stream', None)
    if not marks: marks.append(held())
    marks.append(held())
    first, last = marks[0], marks[-1]
    said.write_text(json.dumps(dict(times=i+1, grew={k:round(last[k]-first[k], 1) for k in last},
        tmp=harness.temporary(s['root']))))

def cases(rng):
    while True:
        names = list(WORK)
        rng.shuffle(names)
        for name in names: yield dict(what=name)

def run(case):
    if not STATE: STATE.update(prepare(harness.campaign_folder()/'state'))
    harness.set_data(STATE['root'])
    n, most = WORK[case['what']]
    before, said = left(), harness.case_folder()/'grew.json'
    child = harness.fork(repeat, case['what'], n, said)
    status = child.wait(SECONDS*10)
    if status: return f"{'hang' if status == 'hang' else 'unclear'}: {case['what']}: {child.last()}"
    found = json.loads(said.read_text())
    grew = found['grew']
    if alive := harness.outliving(): return f"process: {case['what']} leaves {alive}"
    if grew['mb'] > most or grew['files'] > 1 or grew['threads'] > 1 or grew['processes'] > 0:
        return f"leak: {case['what']} {found['times']} times: {grew}"
    if found['tmp']: return f"leftover: {case['what']}: {found['tmp'][:3]}"
    if more := sorted(left()-before): return f"leftover: {case['what']}: {more[:5]}"
    return 'ok'
