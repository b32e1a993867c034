"""Models to the hub and back: a stand-in on this machine takes uploads and gives them out by branch, tag and commit, and refuses as the hub refuses"""
import base64, hashlib, json, os, re, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit
import pytest
import torch
from steve1.config import repo_root
from steve1.base.checkpoints import save_tensors

class Hub:
    "Repositories: name -> refs (branch -> commit) and commits (commit -> {path: bytes}); what the hub's API says of them"
    def __init__(self): self.repos, self.blobs, self.gated, self.asked, self.lock = {}, {}, set(), [], threading.Lock()

    def commit(self, repo, files, branch='main'):
        r = self.repos.setdefault(repo, dict(refs={}, commits={}))
        files = r['commits'].get(r['refs'].get(branch), {}) | files
        oid = hashlib.sha1(repr((repo, len(r['commits']), sorted(files))).encode()).hexdigest()
        r['commits'][oid], r['refs'][branch] = files, oid
        return oid

    def find(self, repo, revision):
        "commit and files, or the error (status, X-Error-Code) that the hub answers"
        r = self.repos.get(repo)
        if r is None: return 401, 'RepoNotFound'
        if repo in self.gated: return 403, 'GatedRepo'
        oid = r['refs'].get(revision, revision)
        return (oid, r['commits'][oid]) if oid in r['commits'] else (404, 'RevisionNotFound')

    def answer(self, h, method, path, body):
        "-> status, headers, bytes"
        js = lambda x, status=200: (status, {'Content-Type':'application/json'}, json.dumps(x).encode())
        wrong = lambda status, code: (status, {'X-Error-Code':code, 'X-Error-Message':code}, b'')
        if m := re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path):
            oid, files = self.find(m[1], unquote(m[2]))
            if isinstance(oid, int): return wrong(oid, files)
            if m[3] not in files: return wrong(404, 'EntryNotFound')
            data = files[m[3]]
            return 200, {'X-Repo-Commit':oid, 'ETag':f'"{hashlib.sha256(data).hexdigest()}"'}, data
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)/tree/([^/]+)', path):
            oid, files = self.find(m[1], unquote(m[2]))
            return wrong(oid, files) if isinstance(oid, int) else js([dict(type='file', path=k, size=len(v),
                oid=hashlib.sha1(v).hexdigest()) for k,v in files.items()])
        if h.headers.get('Authorization') != 'Bearer may-write':
            return 401, {'X-Error-Message':'Invalid credentials in Authorization header'}, b''
        if path == '/api/repos/create':
            name, new = (
                f"{body['organization']}/{body['name']}",
                f"{body['organization']}/{body['name']}" not in self.repos,
            )
            if new: self.commit(name, {'.gitattributes':b''})
            return js(dict(url=f"{h.base}/{name}"), 200 if new else 409)
        if path == '/api/validate-yaml':
            return js(dict(errors=[], warnings=[]), 200 if 'license:' in body['content'] else 400)
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)/branch/(.+)', path):
            r = self.repos[m[1]]; known = unquote(m[2]) in r['refs']
            r['refs'].setdefault(unquote(m[2]), r['refs']['main'])
            return js({}, 409 if known else 200)
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)/preupload/(.+)', path):
            return js(dict(files=[dict(path=f['path'], shouldIgnore=False,
                uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular') for f in body['files']]))
        if path.endswith('/info/lfs/objects/batch'):
            return js(dict(transfer='basic',
                objects=[dict(o, actions=dict(upload=dict(href=f"{h.base}/lfs/{o['oid']}"))) for o in body['objects']]))
        if m := re.fullmatch(r'/api/models/([^/]+/[^/]+)/commit/(.+)', path):
            files = {v['path']:base64.b64decode(v['content']) if l['key'] == 'file' else self.blobs[v['oid']]
                for l in body if l['key'] != 'header' for v in [l['value']]}
            oid = self.commit(m[1], files, unquote(m[2]))
            return js(dict(success=True, commitOid=oid, commitUrl=f'{h.base}/{m[1]}/commit/{oid}', hookOutput=''))
        return wrong(404, f'the stand-in knows no {method} {path}')

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def serve(self):
        data, path = self.rfile.read(int(self.headers.get('Content-Length', 0))), urlsplit(self.path).path
        self.base, hub = f'http://127.0.0.1:{self.server.server_port}', self.server.hub
        with hub.lock:
            hub.asked.append((self.command, path))
            if path.startswith('/lfs/'):
                hub.blobs[path[5:]] = data
                status, head, out = 200, {}, b''
            else:
                body = [json.loads(l)
                    for l in data.splitlines()] if '/commit/' in path else json.loads(data) if data else None
                status, head, out = hub.answer(self, self.command, path, body)
        self.send_response(status)
        for k,v in {**head, 'Content-Length':len(out)}.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(out)
    do_GET = do_HEAD = do_POST = do_PUT = serve

@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    "The stand-in, with what other people put there"
    hub, tmp, w = Hub(), tmp_path_factory.mktemp('others'), torch.zeros(2)
    one = lambda names, meta={}: save_tensors(tmp/'x.safetensors', {k:w for k in names}, meta).read_bytes()
    hub.commit('others/minestudio',
        {'config.json':b'{}', 'model.safetensors':one(['net.mineclip_embed_linear.weight',
        'mineclip.clip_model.logit_scale', 'prior.encoder.0.weight'])})
    hub.commit('others/published', {'README.md':b'', 'steve1.weights':b'PK'})
    hub.commit('others/headerless', {'model.safetensors':one(['net.mineclip_embed_linear.weight'])})
    hub.commit('others/cut', {'model.safetensors':one(['x'])[:40]})
    hub.commit('others/gated', {}); hub.gated.add('others/gated')
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.hub = hub
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f'http://127.0.0.1:{server.server_port}'
    yield hub
    server.shutdown(); server.server_close()

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('home')

PRELUDE = '''
import json, warnings; warnings.simplefilter('ignore')
from huggingface_hub.utils import disable_progress_bars, logging; disable_progress_bars(); logging.set_verbosity_error()
from pathlib import Path
import torch; torch.manual_seed(0)
from steve1.base.checkpoints import read_meta
from steve1.models.idm import IDM, IDMConfig
from steve1.mineclip import MineCLIP, MineCLIPConfig
from steve1.policy import Policy, PolicyConfig
from steve1.prior import Prior, PriorConfig
def said(f):
    try: f()
    except (ValueError, OSError) as e: return type(e).__name__ + ' ' + str(e)
    return 'no error'
def same(a, b): return type(a) is type(b) and a.cfg == b.cfg and a.record == b.record and all(torch.equal(v, b.state_dict()[k]) for k,v in a.state_dict().items())
'''

def client(code, url, home, **env):
    "What a Python of its own, which sees only this hub and this cache, found: its last line, as JSON"
    env = {k:v for k,v in os.environ.items() if not k.startswith('HF_')} | dict(HF_ENDPOINT=url, HF_HOME=str(home),
        HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1', OMP_NUM_THREADS='1', NO_PROXY='127.0.0.1') | env
    run = subprocess.run([sys.executable, '-c', PRELUDE + code], env=env, cwd=repo_root(), capture_output=True,
        text=True, timeout=100)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])

@pytest.fixture(scope='module')
def pushed(hub, home):
    "All four kinds are uploaded, and come back"
    return client('''
shape = MineCLIPConfig.preset('tiny')
models = dict(policy=Policy(PolicyConfig.preset('tiny')), mineclip=MineCLIP(shape, ['tree', 'wood']), prior=Prior(PriorConfig.preset('tiny')), idm=IDM(IDMConfig.preset('tiny')))
out = dict(same={}, urls={})
for kind,m in models.items():
    m.record = dict(train=dict(lr=1e-3), val=dict(loss=1.25), frames=1000)
    out['urls'][kind] = m.push_to_hub(f'us/{kind}')
    back = type(m).from_pretrained(f'us/{kind}')
    out['same'][kind] = same(m, back) and not back.training
    if kind == 'mineclip': out['words'] = back.tokenizer.words
x = (torch.zeros(1, 3, 64, 64, 3, dtype=torch.uint8), torch.randn(1, 3, 128), torch.zeros(1, 3, dtype=torch.bool))
with torch.no_grad(): out['logits'] = torch.equal(models['policy'].eval()(*x)[0].button_logits, Policy.from_pretrained('us/policy')(*x)[0].button_logits)
p = models['policy']; p.record = dict(frames=2000)
p.push_to_hub('us/policy', message='longer')
p.record = dict(frames=3000); p.push_to_hub('us/policy', revision='try')
out['records'] = {str(r):Policy.from_pretrained('us/policy', r).record['frames'] for r in (None, 'main', 'try', out['urls']['policy'].split('/')[-1])}
print(json.dumps(out))''', hub.url, home, HF_TOKEN='may-write')

def test_there_and_back(pushed, hub):
    assert pushed['same'] == dict.fromkeys(('policy', 'mineclip', 'prior', 'idm'),
        True) and pushed['logits'] and pushed['words'] == ['tree', 'wood']
    head = hub.find('us/mineclip', 'main')[1]
    assert sorted(head) == ['.gitattributes', 'README.md', 'config.json', 'model.safetensors']
    assert json.loads(head['config.json'])['words'] == ['tree', 'wood']

def test_card(pushed, hub):
    text = hub.find('us/policy', pushed['urls']['policy'].split('/')[-1])[1]['README.md'].decode()
    for said in ('license: mit', '# policy\n', "Policy.from_pretrained('us/policy')", '| hidsize | 32 |',
        '| val.loss | 1.25 |', '| frames | 1000 |', '| lr | 0.001 |'):
        assert said in text, said

def test_revisions(pushed):
    "A branch and a commit are what they were when they were pushed"
    first = pushed['urls']['policy'].split('/')[-1]
    assert pushed['records'] == {'None':2000, 'main':2000, 'try':3000, first:1000}

def test_offline_and_cached(pushed, hub, home):
    "With HF_HUB_OFFLINE nobody is asked: what is in the cache loads, at its revision, and what is not says how to fetch it"
    first, asked = pushed['urls']['policy'].split('/')[-1], len(hub.asked)
    out = client(f'''
print(json.dumps(dict(records=[Policy.from_pretrained('us/policy', r).record['frames'] for r in (None, 'try', {first!r})],
    other=said(lambda: Policy.from_pretrained('us/policy', revision='v9')), new=said(lambda: Policy.from_pretrained('us/new')), push=said(lambda: Policy.from_pretrained('us/policy').push_to_hub('us/policy')))))''', hub.url, home, HF_HUB_OFFLINE='1')
    assert out['records'] == [2000, 3000, 1000] and len(hub.asked) == asked
    assert out['other'].startswith('DownloadError us/policy at v9: it is not in the '
        'cache') and '`HF_HUB_OFFLINE=0 hf download us/policy model.safetensors --revision v9`' in out['other']
    assert (
        '`HF_HUB_OFFLINE=0 hf download us/new model.safetensors`' in out['new']
        and 'us/new is no folder here, either' in out['new']
    )
    assert out['push'].startswith('DownloadError us/policy: HF_HUB_OFFLINE forbids access to the hub')

def test_errors(pushed, hub, home):
    "What is not there, not allowed, or something else, says so and what to do"
    out = client('''
ask = lambda *a, cls=Policy, **kw: said(lambda: cls.from_pretrained(*a, **kw))
print(json.dumps(dict(repo=ask('us/nothing'), revision=ask('us/policy', revision='v9'), name=ask('a/b/c'), gated=ask('others/gated'), kind=ask('us/policy', cls=Prior), file=ask('us/policy', file='prior.safetensors'),
    minestudio=ask('others/minestudio'), published=ask('others/published'), headerless=ask('others/headerless'), cut=ask('others/cut'),
    push=said(lambda: Prior(PriorConfig.preset('tiny')).push_to_hub('us/prior')))))''', hub.url, home,
        HF_TOKEN='reads-only')
    for key,words in dict(repo=('DownloadError us/nothing: the hub has no such repository, or it is private',
        'hf auth login'), revision=('us/policy at v9', 'no such branch, tag or commit'),
        name=("ValueError 'a/b/c' is neither a folder nor the name of a repository",),
            gated=('others/gated: agree to its terms',),
        kind=('us/policy: model.safetensors holds a policy, not a prior',),
            file=('it has no prior.safetensors; it has README.md, config.json, model.safetensors',),
        minestudio=('others/minestudio: model.safetensors holds a policy, a prior and a mineclip in one, as '
            'MineStudio keeps them', '`steve1_convert ', 'FOLDER` makes three files of it'),
        published=('it has no model.safetensors; it has README.md, steve1.weights',
            '`from_official` reads it, `steve1_convert` makes it one of ours'),
        headerless=('others/headerless: model.safetensors is a published file (a policy)',),
            cut=('others/cut', 'is cut short'),
        push=('this token may not do that: `hf auth login`',)).items():
        for w in words: assert w in out[key], (key, out[key])

def test_unreachable(pushed, home):
    "No network: the cache serves, and what is not in it says that the hub does not answer"
    out = client('''
import time; time.sleep = lambda s: None # huggingface_hub waits half a minute between its tries
print(json.dumps(dict(cached=Policy.from_pretrained('us/policy').record['frames'], new=said(lambda: Policy.from_pretrained('us/new')))))''', 'http://127.0.0.1:9', home)
    assert (
        out['cached'] == 2000
        and 'us/new: it is not in the cache, and http://127.0.0.1:9 does not answer' in out['new']
    ), out
