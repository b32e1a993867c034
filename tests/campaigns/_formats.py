"""One small sound file of each format that is read, and what reads it.

A reader takes the folder and returns a dict: name -> what it found there. `free` names what a changed file may change
without an error, since the format holds no checksum of it: another pixel, another number of a legal value. All else
must stay the same or be refused."""
import json, os, pickle, shutil
from collections import namedtuple
from pathlib import Path
import numpy as np
from harness import ROOT, set_data

Format = namedtuple('Format', 'name kind folder file read free')
GOLDEN, SAMPLE = ROOT/'tests'/'golden', ROOT/'data'/'episodes'/'sample'

class Formats:
    "Sound files below a folder, made one group at a time"
    def __init__(self, base): self.base, self.rng, self.all = Path(base), np.random.default_rng(0), {}
    def add(self, name, kind, folder, file, read, free=()):
        self.all[name] = Format(name, kind, folder, file, read, frozenset(free))
    def folder(self, name):
        (self.base/name).mkdir(parents=True, exist_ok=True)
        return self.base/name

def frames(rng, n, repeat, size=(32,32)):
    "Noise, each picture several times"
    return np.repeat(rng.integers(0, 255, (n,*size,3), dtype=np.uint8), repeat, 0)

def batches(path, n=3):
    "What training sees of an episode"
    from steve1.dataset import ChunkStream, DataConfig
    s = ChunkStream([path], DataConfig(T=16, max_gap=30), batch=1)
    found = [{k:v for k,v in s.batch(i).items() if k != 'episode'} for i in range(n)]
    return {k:[b[k] for b in found] for k in found[0]}

# --- episodes

LABELS = 'spans', 'events', 'masked', 'source', 'seed', 'meta', 'repr', 'loss_mask'

def episodes(f):
    "An episode of ours, as training, validation and a look at it read it; a sampling; an index"
    from steve1.data.foreign import EpisodeIndex
    from steve1.data.inspect import episode_cli
    from steve1.data.sampling import make_sampling, read_sampling
    from steve1.episodes import Episode, EpisodeWriter, validate_episode
    root, n = set_data(f.folder('ep')), 60
    with EpisodeWriter(root/'datasets'/'d'/'e0', (32,32), seed=1, source='toy') as w:
        w.add_many(frames(f.rng, 6, 10), dict(jump=f.rng.integers(0, 2, n), camera=f.rng.choice([0., 3.], (n,2))))
        e = f.rng.standard_normal((n,8)); e[:15] = np.nan
        w.add_embeds(e, 'toy')
        w.meta |= dict(spans=[dict(start=3, stop=9, task='dig')], events=[dict(step=20, task='dig')], masked=[[2,4]])
    shutil.copytree(root/'datasets'/'d'/'e0', root/'datasets'/'d'/'e1')
    make_sampling('d', 'd', .5)
    def at(d): return d/'datasets'/'d'/'e0'
    def whole(d):
        ep = validate_episode(at(d))
        return dict(frames=ep.frames(), actions=np.array(ep.actions), embeds=np.array(ep.embeds), meta=ep.meta)
    def look(d):
        ep = Episode(at(d))
        return dict(spans=ep.spans, events=ep.events, masked=ep.masked, loss_mask=ep.loss_mask, n=ep.n,
            size=ep.size, fps=ep.fps, repr=repr(ep),
            html='<script' in ep._repr_html_(), meta=ep.meta)
    # training opens what a validated dataset holds: pixels, actions and goals of a file that changed later are free
    for file,kind,free in (('frames.mp4','mp4',{'img'}), ('actions.npy','npy',{'buttons','camera'}),
        ('embeds.npy','npy',{'goal'}),
            ('metadata.json','json',{'loss_mask'})):
        f.add(f'{file}, trained on', kind, 'ep', f'datasets/d/e0/{file}', lambda d: batches(at(d)), free)
        f.add(f'{file}, validated', kind, 'ep', f'datasets/d/e0/{file}', whole, {'meta'} if kind == 'json' else ())
    f.add('metadata.json, looked at', 'json', 'ep', 'datasets/d/e0/metadata.json', look, {*LABELS, 'fps', 'n', 'size'})
    f.add('metadata.json, listed', 'json', 'ep', 'datasets/d/e0/metadata.json',
        lambda d: dict(status=episode_cli(['validate', str(d/'datasets'/'d')])), ())
    def lists(d):
        return dict(zip(('train','val'), ([p.relative_to(d).as_posix() for p in l] for l in read_sampling('d'))))
    f.add('sampling', 'text', 'ep', 'samplings/d_train.txt', lists, {'train'})   # names of folders that are there
    def index(d): return dict(table=EpisodeIndex.of(d/'datasets'/'d').table.drop(columns=['bytes']).to_dict())
    case = set_data(f.base.parent/'tried')                                         # the index names its folder
    shutil.copytree(root, case, dirs_exist_ok=True)
    index(case)
    there = EpisodeIndex.file_of(case/'datasets'/'d').relative_to(case)
    (root/there).parent.mkdir(parents=True)
    shutil.copy2(case/there, root/there)
    shutil.rmtree(case)
    f.add('index of episodes', 'json', 'ep', str(there), index, {'table'})        # of this user, only a cache

def published_episode(f):
    "A folder of the published code"
    from steve1.data.legacy import convert_published
    from steve1.episodes import Episode
    shutil.copytree(GOLDEN/'episode_sample', f.folder('pub')/'e')
    def convert(d):
        ep = Episode(convert_published(d/'e', d/'out'))
        return dict(frames=ep.frames(), actions=np.array(ep.actions), embeds=np.array(ep.embeds), meta=ep.meta)
    free = {'frames.mp4':{'img','frames','meta'}, 'actions.pkl':{'buttons','camera','actions','meta'},
        'embeds_attn.pkl':{'goal','embeds','meta'},
        'metadata.json':{'meta'}, 'len.txt':{'img','buttons','camera','goal','loss_mask','first','frames','actions',
            'embeds','meta'}}   # a smaller number is a shorter episode
    for file,kind in (('frames.mp4','mp4'), ('actions.pkl','bytes'), ('embeds_attn.pkl','bytes'),
        ('metadata.json','json'), ('len.txt','bytes')):
        f.add(f'published {file}', kind, 'pub', f'e/{file}', lambda d: batches(d/'e', 2), free[file])
        f.add(f'published {file}, converted', kind, 'pub', f'e/{file}', convert, free[file])

# --- recordings

def recording(ep):
    return dict(frames=ep.frames(), actions=np.array(ep.actions), n=ep.n,
        meta={k:v for k,v in ep.meta['recording'].items() if k != 'sha256'})

def recordings(f):
    "A contractor's recording, one's own, a video as a prompt"
    from steve1.base.actions import KEYS
    from steve1.base.video import VideoReader, VideoWriter
    from steve1.data.contractor import ContractorConfig, convert_contractor, write_contractor
    from steve1.data.importing import convert_recordings
    from steve1.data.recordings import RecordingConfig, convert_recording
    from steve1.episodes import Episode
    ep = Episode(SAMPLE/'500000')
    write_contractor(ep, f.folder('con')/'8.0'/'rec', size=(48,64), stop=40)
    def contractor(d):
        return recording(Episode(convert_contractor(d/'8.0'/'rec.mp4', d/'8.0'/'rec.jsonl', d/'out',
            ContractorConfig(size=(32,32)))))
    # other numbers in a line are other play; lines that are gone leave frames over, which the contractors' rules allow
    pixels, play = {'frames'}, {'frames', 'actions', 'n', 'meta'}
    f.add('contractor mp4', 'mp4', 'con', '8.0/rec.mp4', contractor, pixels)
    f.add('contractor jsonl', 'jsonl', 'con', '8.0/rec.jsonl', contractor, play)
    own = f.folder('own')/'rec'
    own.mkdir()
    with VideoWriter(own/'video.mp4', (32,32)) as v: v.add(frames(f.rng, 5, 8))
    lines = [{k:int(r[k]) for k in KEYS} | dict(camera=[float(x) for x in r['camera']]) for r in ep.actions[:40]]
    (own/'actions.jsonl').write_text(''.join(json.dumps(l)+'\n' for l in lines))
    cfg = RecordingConfig(size=(32,32))
    def convert(d): return recording(Episode(convert_recording(d/'rec', d/'out', cfg)))
    f.add('recording video.mp4', 'mp4', 'own', 'rec/video.mp4', convert, pixels)
    f.add('recording actions.jsonl', 'jsonl', 'own', 'rec/actions.jsonl', convert, play)
    shutil.copy(own/'video.mp4', f.folder('cam')/'p.mp4')
    def prompt(d):
        with VideoReader(d/'p.mp4') as v: return dict(frames=v.read(4, 20))
    f.add('video prompt', 'mp4', 'cam', 'p.mp4', prompt, pixels)
    root = set_data(f.folder('rec'))
    shutil.copytree(own, root/'in'/'r0')
    def again(d):
        return dict(table=convert_recordings([d/'in'], 'mine', cfg, workers=0).to_dict(),
            rows=(d/'datasets/mine/recordings.jsonl').read_bytes())
    again(root)
    # rows of recordings not named now stay as they are
    f.add('recordings.jsonl', 'jsonl', 'rec', 'datasets/mine/recordings.jsonl', again, {'rows'})
    f.add('metadata.json of a recording', 'json', 'rec', 'datasets/mine/r0/metadata.json', again, {'table', 'rows'})

def lists(f):
    "Indexes, ledgers, seeds, pairs, tables"
    from steve1.acting.statistics import read_rows
    from steve1.data.collect import Ledger, RecordingIndex
    from steve1.evaluate import read_seeds
    from steve1.models.published import check_published
    from steve1.prior import Pairs
    root = set_data(f.folder('idx'))
    (root/'index.json').write_text(json.dumps(dict(basedir='http://127.0.0.1:9/x/', relpaths=['8.0/a.mp4', '9.1/b',
        'c.mp4'])))
    def entries(d): return RecordingIndex.read(d/'index.json').recordings
    def index(d):
        found = entries(d)
        outside = [str(p) for r in found for p in (r.raw_path(d/'raw', '.mp4'), d/'datasets'/r.name)
            if not Path(os.path.normpath(p)).is_relative_to(d)]
        return dict(entries=[tuple(e) for e in found], plan=len(Ledger.of('some').plan(found)[0]), outside=outside)
    f.add('contractor index', 'json', 'idx', 'index.json', index, {'entries', 'plan'})
    ledger = Ledger(root/'datasets'/'some'/'ledger.jsonl')
    for row in (('8.0_a', 'missing', '404'), ('9.1_b', 'network', 'slow'), ('9.1_b', 'done')): ledger.add(*row)
    def state(d):
        return dict(last=Ledger(d/'datasets'/'some'/'ledger.jsonl').last,
            faults=Ledger.of('some').faults(entries(d)), report=Ledger.of('some').report(entries(d)).to_dict())
    # a lost line costs another try
    f.add('contractor ledger', 'jsonl', 'idx', 'datasets/some/ledger.jsonl', state, {'last', 'faults', 'report'})
    published = f.folder('idx/weights/published')
    (published/'attn.pth').write_bytes(b'12345')
    (published/'published.json').write_text(json.dumps({'attn.pth':dict(sha256='0'*64, size=5, url='http://x/',
        date='2026-01-01')}))
    f.add('published.json', 'json', 'idx', 'weights/published/published.json',
        lambda d: dict(found=check_published(d/'weights'/'published')), {'found'})
    (root/'seeds.txt').write_text('1000000\n1000001\n1000002\n')
    f.add('seeds.txt', 'text', 'idx', 'seeds.txt', lambda d: dict(seeds=read_seeds()), {'seeds'})
    rows = [f'{t},{c},plains,{s},dug,{v},,ab,cd,ef\n' for t,c,v in (('dig','prompt',3.5), ('','unconditional',1.5))
        for s in (1, 2, 3)]
    (root/'rows.csv').write_text('task,condition,arena,seed,metric,value,failed,config,commit,weights\n'+''.join(rows))
    f.add('rows.csv', 'text', 'idx', 'rows.csv', lambda d: dict(rows=read_rows(d/'rows.csv').to_dict()), {'rows'})
    def some(): return [f.rng.standard_normal((1,8)).astype(np.float32) for _ in range(6)]
    (root/'data.pkl').write_bytes(pickle.dumps(dict(text_embeddings=some(), visual_embeddings=some()), 4))
    def pairs(d):
        return {f'{k}{i}':getattr(p, k) for i,p in enumerate(Pairs.from_file(d/'data.pkl', n_val=2))
            for k in ('text','goal','task')}
    f.add('data.pkl of pairs', 'bytes', 'idx', 'data.pkl', pairs,
        {f'{k}{i}' for i in (0, 1) for k in ('text','goal','task')})

# --- networks

TENSORS = 'tensors', 'config', 'record'

def network(m):
    return dict(names=sorted(m.state_dict()), shapes={k:tuple(v.shape) for k,v in m.state_dict().items()},
        tensors=m.state_dict(),
    config=m.cfg.to_dict(), record=getattr(m, 'record', None))

def checkpoints(f):
    "Our four networks, published files of two, their settings, goals"
    import torch
    from steve1.acting.goals import System
    from steve1.data.moments import load_moment
    from steve1.models.idm import IDM, IDMConfig
    from steve1.models.published import convert_checkpoint
    from steve1.mineclip import MineCLIP
    from steve1.policy import Policy, PolicyConfig
    from steve1.prior import Prior, PriorConfig
    torch.manual_seed(0)
    every = f.folder('ck')
    System.random(every)
    IDM(IDMConfig.preset('tiny')).save(every/'idm.safetensors')
    # a safetensors file has no checksum
    for name,cls in dict(policy=Policy, mineclip=MineCLIP, prior=Prior, idm=IDM).items():
        shutil.move(every/f'{name}.safetensors', f.folder(f'ck_{name}'))
        f.add(f'{name}.safetensors', 'safetensors', f'ck_{name}', f'{name}.safetensors', lambda d, cls=cls,
            name=name: network(cls.load(d/f'{name}.safetensors')), TENSORS)
    small = PolicyConfig(image_size=(32,32), channels=(4,4,4), n_res=1, d_image=8, hidsize=16, n_layers=1,
        n_heads=2, memory=8, timesteps=8, d_goal=8)
    weights = {f'policy.{k}':v.clone() for k,v in Policy(small).to_official().items()}
    torch.save(weights, f.folder('off')/'steve1.weights')
    f.add('published .weights', 'zip', 'off', 'steve1.weights',
        lambda d: network(Policy.from_official(d/'steve1.weights')), TENSORS)
    torch.save(weights, f.folder('leg')/'steve1.weights', _use_new_zipfile_serialization=False)
    f.add('published .weights, old format', 'bytes', 'leg', 'steve1.weights',
        lambda d: network(Policy.from_official(d/'steve1.weights')), TENSORS)
    torch.save(Prior(PriorConfig.preset('tiny')).to_official(), f.folder('pri')/'prior.pt')
    f.add('published prior .pt', 'zip', 'pri', 'prior.pt',
        lambda d: network(Prior.load(convert_checkpoint(d/'prior.pt', d/'out.safetensors'))), TENSORS)
    net = dict(attention_heads=2, attention_mask_style='clipped_causal', attention_memory_size=16, hidsize=16,
        img_shape=[32,32,3], impala_chans=[4,4,4],
        impala_width=1, n_recurrence_layers=1, pointwise_ratio=4, timesteps=8, recurrence_type='transformer')
    settings = dict(model=dict(args=dict(net=dict(args=net), pi_head_opts=dict(temperature=2.0))))
    (f.folder('mod')/'2x.model').write_bytes(pickle.dumps(settings, 2))
    torch.save(Policy(small.replace(n_res=2, d_image=256, d_goal=512)).to_official(), f.folder('mod')/'w.pt')
    f.add('.model', 'bytes', 'mod', '2x.model', lambda d: network(Policy.from_official(d/'w.pt', d/'2x.model')),
        TENSORS)
    np.save(f.folder('goal')/'goal.npy', f.rng.standard_normal(8).astype(np.float32))
    f.add('goal.npy', 'npy', 'goal', 'goal.npy', lambda d: dict(goal=load_moment(str(d/'goal.npy'), 8).embed), {'goal'})

def tokenizer(f):
    "CLIP's tokenizer files in a Hugging Face cache"
    import transformers   # noqa: F401  (skipped where it is not installed)
    from steve1.models.tokenizers import ClipTokenizer
    folder = f.folder('tok/models--openai--clip-vit-base-patch16/snapshots/abc')
    refs = f.folder('tok/models--openai--clip-vit-base-patch16/refs')
    (refs/'main').write_text('abc')
    letters = [chr(c) for c in range(97, 123)]
    merges = [('c','a'), ('ca','t</w>'), ('d','o'), ('do','g</w>')]
    words = [*letters, *(l+'</w>' for l in letters), *(a+b for a,b in merges), '<|startoftext|>', '<|endoftext|>']
    (folder/'vocab.json').write_text(json.dumps({w:i for i,w in enumerate(words)}))
    (folder/'merges.txt').write_text('#version: 0.2\n'+''.join(f'{a} {b}\n' for a,b in merges))
    (folder/'tokenizer_config.json').write_text(json.dumps(dict(model_max_length=77, bos_token='<|startoftext|>',
        eos_token='<|endoftext|>', unk_token='<|endoftext|>')))
    def ids(d): return dict(ids=ClipTokenizer(len(words), 16, cache=d)(['cat dog', 'cad']))
    for file,kind in (('vocab.json','json'), ('merges.txt','text'), ('tokenizer_config.json','json')):
        f.add(f'tokenizer {file}', kind, 'tok', f'models--openai--clip-vit-base-patch16/snapshots/abc/{file}', ids,
            {'ids'})

# --- runs

def runs(f):
    "What a run has saved, and files of settings"
    import torch, yaml
    from matplotlib import pyplot as plt
    from steve1.base.commands import parse_config
    from steve1.base.files import sha256
    from steve1.training.recipe import TrainConfig
    from steve1.training.runs import RunFolder, plot_metrics
    root = set_data(f.folder('run'))
    (root/'cfg.yaml').write_text(yaml.safe_dump(json.loads(json.dumps(TrainConfig.preset('tiny').flat()))))
    f.add('settings file', 'yaml', 'run', 'cfg.yaml', lambda d: parse_config(TrainConfig,
        ['--config', str(d/'cfg.yaml')]).to_dict(), set(TrainConfig().to_dict()))
    run = f.folder('run/runs/m')
    cfg = TrainConfig.preset('tiny').replace(name='m')
    (run/'config.yaml').write_text(yaml.safe_dump(json.loads(json.dumps(cfg.flat()))))
    f.add('config.yaml of a run', 'yaml', 'run', 'runs/m/config.yaml',
        lambda d: dict(same=RunFolder('m').check_unused(cfg)), ())
    rows = [{'step':i, 'frames':64*i, 'kind':'train', 'loss/train':1.5} for i in range(1, 6)]
    (run/'metrics.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    def metrics(d):
        plt.close(plot_metrics('m'))
        return dict(rows=RunFolder('m').metrics()[:4])
    f.add('metrics.jsonl', 'jsonl', 'run', 'runs/m/metrics.jsonl', metrics, {'rows'})
    (state := run/'state').mkdir()
    torch.save(dict(step=3, model=dict(w=torch.ones(3)), seconds=1.), state/'main.pt')
    (state/'manifest.json').write_text(json.dumps({'main.pt':sha256(state/'main.pt')}))
    def saved(d):
        run = RunFolder('m')
        return dict(state=run.read_state(run.find_state(), 'main'))
    f.add('main.pt of a state', 'zip', 'run', 'runs/m/state/main.pt', saved)
    f.add('manifest.json of a state', 'json', 'run', 'runs/m/state/manifest.json', saved)

def settings(f):
    "Configs as headers, notebooks and files hold them"
    from steve1.acting.goals import MineCLIPConfig, PolicyConfig, PriorConfig
    from steve1.data.recordings import RecordingConfig
    from steve1.dataset import DataConfig
    from steve1.evaluate import EvalConfig
    from steve1.models.idm import IDMConfig
    from steve1.rollout import RolloutConfig
    from steve1.training.recipe import TrainConfig
    for cls in (TrainConfig, RolloutConfig, EvalConfig, RecordingConfig, DataConfig, PolicyConfig, PriorConfig,
        MineCLIPConfig, IDMConfig):
        (f.folder(f'par_{cls.__name__}')/'params.json').write_text(json.dumps(cls().to_dict()))
        def read(d, cls=cls):
            try: values = json.loads((d/'params.json').read_text())
            # no JSON reaches a config
            except (ValueError, RecursionError) as e: raise ValueError(f'params.json: {e}') from None
            return cls.from_dict(values).to_dict()
        f.add(f'parameters of {cls.__name__}', 'json', f'par_{cls.__name__}', 'params.json', read, set(cls().to_dict()))

def remote(f):
    "The folder that stands for an episode elsewhere"
    import fsspec
    from steve1.base.remote import EpisodeFolder
    from steve1.episodes import validate_episode
    root = set_data(f.folder('far'))
    def upload(): fsspec.filesystem('memory').put(str(SAMPLE/'500000'), '/play/500000', recursive=True)
    upload()
    stub = EpisodeFolder.at('memory://play/500000').path
    def fetch(d):
        upload()
        before = {p for p in d.parent.rglob('*') if not p.is_relative_to(d/'cache')}
        ep = validate_episode(EpisodeFolder.at('memory://play/500000').path)
        outside = sorted(str(p) for p in d.parent.rglob('*') if not p.is_relative_to(d/'cache') and p not in before)
        return dict(n=ep.n, frames=ep.frames(0, 20), actions=np.array(ep.actions), outside=outside)
    at = stub.relative_to(root)
    f.add('.origin.json', 'json', 'far', str(at/'.origin.json'), fetch)
    f.add('metadata.json of an episode elsewhere', 'json', 'far', str(at/'metadata.json'), fetch)

GROUPS = episodes, published_episode, recordings, lists, checkpoints, tokenizer, runs, settings, remote

def make_formats(base):
    "All formats: name -> `Format`; those whose reader is not installed are left out"
    f = Formats(base)
    for group in GROUPS:
        try: group(f)
        except ImportError as e: print(f'{group.__name__}: left out ({e})', flush=True)
    return f.all
