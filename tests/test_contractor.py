"Contractor recordings from a server that behaves like the real one: files missing, short, wrong, and a network that breaks"
import json, os, random, re, shutil, signal, subprocess, sys, threading, time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, torch
from steve1.base.actions import KEYS
from steve1.config import repo_root
from steve1.base.files import sha256
from steve1.data.collect import CollectConfig, Ledger, RecordingIndex, collect
from steve1.data.contractor import (
    ContractorConfig,
    ContractorFrames,
    RecordingError,
    convert_contractor,
    ContractorActions,
    write_contractor,
)
from steve1.episodes import Episode, list_episodes, validate_episode
from steve1.data.embed import embed_segments, is_embedded

GOOD = ['6.13/plain-0', '6.13/plain-1', '7.6/plain-2', '8.0/plain-3', '9.1/plain-4', '10.0/plain-5',
    '8.0/breaks-twice', '8.0/more-lines', '8.0/stuck']
GONE, SHORT, N = ['8.0/gone-0', '10.0/gone-1'], '8.0/cut-short', 48
PLAY = {g:(i%8, 0) for i,g in enumerate(GOOD+[SHORT])} | {'8.0/stuck':(4, 3)} # which sample episode, from which step

class Site(BaseHTTPRequestHandler):
    "Serves a folder with ranges, counts requests, and hangs up in the middle of files named in `flaky`"
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        path = self.server.folder/self.path.lstrip('/')
        self.server.asked.append(self.path)
        if not path.is_file(): return self.send_error(404)
        data, start = path.read_bytes(), int((re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', '')) or [0,0])[1])
        self.send_response(206 if start else 200)
        if start: self.send_header('Content-Range', f'bytes {start}-{len(data)-1}/{len(data)}')
        self.send_header('Content-Length', str(len(data)-start))
        self.send_header('ETag', f'"{len(data)}"'); self.end_headers()
        if self.server.flaky.get(self.path, 0):
            self.server.flaky[self.path] -= 1
            self.wfile.write(data[start:start+len(data)//3])
            self.close_connection = True
        else: self.wfile.write(data[start:])
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Twelve recordings, of which nine are good"
    folder, sample = tmp_path_factory.mktemp('site'), [Episode(p) for p in list_episodes('sample')]
    for p,(i,a) in PLAY.items(): write_contractor(sample[i], folder/p, start=a, stop=a+N, stuck='stuck' in p)
    with open(folder/'8.0/more-lines.jsonl', 'a') as f: f.write((folder/'6.13/plain-0.jsonl').read_text())
    (p := folder/f'{SHORT}.mp4').write_bytes(p.read_bytes()[:p.stat().st_size//2])
    names = GOOD[:3]+GONE[:1]+GOOD[3:]+[SHORT]+GONE[1:]
    server = ThreadingHTTPServer(('127.0.0.1', 0), Site)
    server.folder, server.asked, server.flaky = folder, [], {}
    (folder/'index.json').write_text(json.dumps(dict(basedir=f'http://127.0.0.1:{server.server_port}/',
        relpaths=[n+'.mp4'*(i%2) for i,n in enumerate(names)])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown(); server.server_close()

def command(site, tmp_path, *args, **kw):
    "`steve1_contractor` as a process, over the index that the server itself serves"
    env = dict(os.environ, OMP_NUM_THREADS='1', STEVE1_DATA=str(tmp_path), PYTHONPATH=str(repo_root()))
    (tmp_path/'run.py').write_text("from steve1.data.collect import contractor_cli\nif __name__ == '__main__': "
        "contractor_cli()\n")
    run = [sys.executable, str(tmp_path/'run.py'), str(site.folder/'index.json'), '--out', str(tmp_path/'made'),
        '--size', '64', *args]
    return subprocess.Popen(run, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, **kw)

def files(dataset):
    return {str(p.relative_to(dataset)):sha256(p) for e in list_episodes(dataset) for p in sorted(e.iterdir())}

def test_one_command_converts_the_good_ones(site, tmp_path):
    "Nine episodes, three named with their reasons; a second run asks the server for nothing"
    site.flaky |= {'/8.0/breaks-twice.mp4':2}
    clip = str(repo_root()/'data/weights/mineclip.safetensors')
    p = command(site, tmp_path, '--clip', clip)
    text, _ = p.communicate(timeout=90)
    assert p.returncode == 0, text
    made = tmp_path/'made'
    assert [e.name for e in list_episodes(made)] == sorted(g.replace('/','_') for g in GOOD)
    assert re.search(r'converted +9', text) and re.search(r'in all +12', text), text
    for name in GONE+[SHORT]: assert name.replace('/','_') in text
    assert '404' in text and 'no readable video' in text
    assert site.asked.count('/8.0/breaks-twice.mp4') == 3
    asked = len(site.asked)
    p = command(site, tmp_path, '--clip', clip)
    text, _ = p.communicate(timeout=60)
    assert p.returncode == 0 and '0 episodes made' in text and len(site.asked) == asked, text
    _check_made(made)

def _check_made(made):
    sample = [Episode(p) for p in list_episodes('sample')]
    for g in GOOD:
        ep, (i,a) = validate_episode(made/g.replace('/','_')), PLAY[g]
        want = sample[i].actions[a:a+N]
        assert len(ep) == N and ep.embeds.shape == (N,128) and np.isfinite(ep.embeds[15:]).all()
        for k in KEYS: assert (ep.actions[k] == want[k]).all(), (g, k)
        np.testing.assert_allclose(ep.actions['camera'], want['camera'], atol=1e-5)
        assert abs(ep.frames().astype(int)-sample[i].frames(a, a+N)).mean() < 6
    more, stuck = (Episode(made/f'8.0_{n}').meta['recording'] for n in ('more-lines','stuck'))
    assert more['dropped']['no frame'] == N and more['steps'] == 2*N and stuck['stuck_attack'] == 18

def test_killed_at_random_moments(site, tmp_path):
    "Twenty SIGKILLs to the whole process group: never a part of an episode, and in the end the files of an undisturbed run"
    rng, made = random.Random(0), tmp_path/'made'
    site.flaky.clear()
    collect(RecordingIndex.read(site.folder/'index.json').recordings, tmp_path/'whole',
        CollectConfig(raw=str(tmp_path/'raw'), workers=0, size=(64,64)))
    whole, (recs, seen) = files(tmp_path/'whole'), (RecordingIndex.read(site.folder/'index.json').recordings, Counter())
    for kill in range(20):
        p, had, more = command(site, tmp_path, '--workers', '1'), _count(made), rng.randrange(4)
        if kill%4:
            _until(lambda: _count(made) >= had+more and list(made.glob('.tmp-*')) or p.poll() is not None, 20,
                rng.uniform(0, .1))
        else: time.sleep(rng.uniform(0, 1.5)) # while it starts, too
        if p.poll() is None:
            os.killpg(p.pid, signal.SIGKILL); seen['killed'] += 1
        p.communicate()
        seen['half done'] += bool(list(made.glob('.tmp-*')))
        for e in made.glob('[!.]*/'): assert files_whole(e), e
        if made.is_dir(): _lose_some(made)
    assert seen['killed'] >= 16 and seen['half done'] >= 5, seen
    p = command(site, tmp_path); text, _ = p.communicate(timeout=90)
    assert p.returncode == 0, text
    assert files(made) == whole and not list(made.glob('.tmp-*'))
    assert sorted(Ledger.of(made).faults(recs)) == sorted(n.replace('/','_') for n in GONE+[SHORT])

def _until(true, timeout, more):
    end = time.monotonic()+timeout
    while not true() and time.monotonic() < end: time.sleep(.005)
    time.sleep(more)

def _count(made): return len(list(made.glob('[!.]*/')))

def _lose_some(made):
    "So that there is work left for all twenty runs"
    for e in list_episodes(made)[2:] if _count(made) > 2 else (): shutil.rmtree(e)

def files_whole(e): return all(sha256(e/f) == h for f,h in Episode(e).meta['files'].items())

def test_network_failures_are_tried_again(site, tmp_path):
    "A network that stays broken is no final verdict; a file that is gone is, until asked"
    recs = [r for r in RecordingIndex.read(site.folder/'index.json').recordings if r.name in ('8.0_breaks-twice',
        '8.0_gone-0')]
    site.flaky |= {'/8.0/breaks-twice.mp4':10**6}
    [found] = [f for r,f in RecordingIndex.fetch(recs, tmp_path/'raw', retries=0) if r.name == '8.0_breaks-twice']
    assert found[0] == 'network'
    led = Ledger(tmp_path/'d'/'ledger.jsonl')
    led.add('8.0_breaks-twice', *found)
    led.add('8.0_gone-0', 'missing', '404')
    todo, _, given_up = Ledger.of(tmp_path/'d').plan(recs)
    assert [r.name for r in todo] == ['8.0_breaks-twice'] and given_up == ['8.0_gone-0']
    assert len(Ledger.of(tmp_path/'d').plan(recs, retry=True)[0]) == 2
    site.flaky.clear()
    assert collect(recs, tmp_path/'d', CollectConfig(raw=str(tmp_path/'raw'), workers=0, size=(64,64),
        keep_raw=True)) == 1
    kept = todo[0].raw_path(tmp_path/'raw', '.mp4')
    assert kept.is_file() and set(Ledger.of(tmp_path/'d').faults(recs)) == {'8.0_gone-0'}
    shutil.rmtree(tmp_path/'d'/todo[0].name) # made once more by a run that keeps nothing of its own: files kept before stay
    assert collect(recs, tmp_path/'d', CollectConfig(raw=str(tmp_path/'raw'), workers=0, size=(64,64))) == 1
    assert kept.is_file() and not list((tmp_path/'raw'/'passing').rglob('*.mp4'))
    assert Ledger.of(tmp_path/'d').report(recs).recordings.to_dict() == {'converted':1, 'not on the server':1,
        'in all':2}

LINE = dict(mouse=dict(x=0., y=0., dx=1., dy=0., buttons=[], newButtons=[]), keyboard=dict(keys=[]),
    isGuiOpen=False, hotbar=0)
def changed(**kw): return json.dumps(LINE | kw)
BROKEN = {
    'line 3: no JSON': '{"mouse": {"x"',
    "line 3: no 'keyboard'": json.dumps({k:v for k,v in LINE.items() if k != 'keyboard'}),
    "line 3: mouse: no 'newButtons'": changed(mouse=dict(dx=0., dy=0., buttons=[])),
    "line 3: mouse: 'dx' must be finite, got nan": changed(mouse=LINE['mouse'] | dict(dx=float('nan'))),
    "line 3: mouse: 'dy' must be finite, got -inf": changed(mouse=LINE['mouse'] | dict(dy=float('-inf'))),
    "line 3: mouse: 'dx' must be finite, got 1000": changed(mouse=LINE['mouse'] | dict(dx=10**290)),
    'line 3: no JSON (an integer of 401 digits': changed(mouse=LINE['mouse'] | dict(x=10**400)),
    "line 3: mouse: 'dx' must be a number, got 'fast'": changed(mouse=LINE['mouse'] | dict(dx='fast')),
    "line 3: mouse: 'buttons' must hold numbers alone": changed(mouse=LINE['mouse'] | dict(buttons=['left'])),
    "line 3: keyboard: 'keys' must hold names alone": changed(keyboard=dict(keys=[[]])),
    "line 3: 'hotbar' must be a slot from 0 to 8, got 9": changed(hotbar=9),
    "line 3: 'isGuiOpen' must be true or false, got '1'": changed(isGuiOpen=1),
    "line 3: not an object": '7',
    "line 3: no JSON (": '['*100_000,
}
@pytest.mark.parametrize('message', BROKEN, ids=str)
def test_broken_lines(site, tmp_path, message):
    "A faulty line is named, and nothing is left behind"
    (p := tmp_path/'a.jsonl').write_text('\n'.join([changed()]*2+[BROKEN[message]]+[changed()]*40))
    with pytest.raises(RecordingError, match=re.escape(message)):
        convert_contractor(site.folder/'8.0/plain-3.mp4', p, tmp_path/'out')
    assert [q.name for q in tmp_path.iterdir()] == ['a.jsonl']

def test_broken_videos(site, tmp_path):
    "Whatever is no whole video is said to be so"
    good, rng = (site.folder/'8.0/plain-3.mp4').read_bytes(), np.random.default_rng(0)
    actions = site.folder/'8.0/plain-3.jsonl'
    for name,data in dict(noise=rng.bytes(10_000), empty=b'', half=good[:len(good)//2], text=b'hello',
        tail=good[len(good)//2:]).items():
        (p := tmp_path/f'{name}.mp4').write_bytes(data)
        with pytest.raises(RecordingError, match=f'{name}.mp4: '): convert_contractor(p, actions, tmp_path/'out')
    for i in range(12): # single bits and blocks changed: an error that names the file, or a whole episode
        b = bytearray(good); at = rng.integers(len(b)-64)
        b[at:at+rng.integers(1,64)] = rng.bytes(rng.integers(1,64))
        (p := tmp_path/f'flip-{i}.mp4').write_bytes(b)
        try: validate_episode(convert_contractor(p, actions, tmp_path/f'out-{i}'))
        except RecordingError as e: assert f'flip-{i}.mp4: ' in str(e)
    assert not list(tmp_path.glob('.tmp-*')) and not (tmp_path/'out').exists()

def test_cut_short_but_readable(site, tmp_path):
    "A file with its table of contents in front opens even when its end is missing; it counts as broken"
    import av
    src, dst = site.folder/'8.0/plain-3.mp4', tmp_path/'front.mp4'
    with av.open(str(src)) as a, av.open(str(dst), 'w', options=dict(movflags='faststart')) as b:
        out = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(video=0):
            if packet.dts is not None:
                packet.stream = out; b.mux(packet)
    assert len(Episode(convert_contractor(dst, site.folder/'8.0/plain-3.jsonl', tmp_path/'whole'))) == N
    dst.write_bytes(dst.read_bytes()[:-3000])
    with pytest.raises(RecordingError, match='front.mp4: (cut short|frame)'):
        convert_contractor(dst, site.folder/'8.0/plain-3.jsonl', tmp_path/'out')

def test_two_conversions_give_the_same_bytes(site, tmp_path):
    a, b = (convert_contractor(site.folder/'8.0/stuck.mp4', site.folder/'8.0/stuck.jsonl', tmp_path/x) for x in 'ab')
    assert {p.name:sha256(p) for p in a.iterdir()} == {p.name:sha256(p) for p in b.iterdir()}

def test_embeddings_are_of_the_recording(site, tmp_path):
    "MineCLIP sees the recording's own frames at its size; written while decoding, they are what one pass gives"
    class Mean(torch.nn.Module):
        d, image_size = 3, (16,24)
        def embed_frames(self, x, rgb=None): return torch.as_tensor(x).float().mean((1,2))
        def embed_windows(self, f): return f.unfold(0, 16, 1).mean(-1)
    mp4, jsonl = site.folder/'8.0/plain-3.mp4', site.folder/'8.0/plain-3.jsonl'
    ep = validate_episode(convert_contractor(mp4, jsonl, tmp_path/'e', ContractorConfig(size=(32,32)),
        clip=Mean()), Mean())
    frames = np.concatenate([x[0] for _,x in ContractorFrames(mp4, ContractorActions.read(jsonl), [(16,24)], step=7)])
    want = np.concatenate(list(embed_segments([frames], Mean())))
    np.testing.assert_allclose(ep.embeds[15:], want[15:], atol=.1) and np.isnan(ep.embeds[:15]).all()
    assert is_embedded(tmp_path/'e', Mean())

WRITER = "import sys; from steve1.data.collect import Ledger\nfor i in range(40): Ledger(sys.argv[1]).add(f'{sys.argv[2]}-{i}', 'network', 'x'*500)"
def test_a_ledger_with_eight_writers(tmp_path):
    "Every event of every process is there, and every line is whole"
    env = dict(os.environ, PYTHONPATH=str(repo_root()), OMP_NUM_THREADS='1')
    for p in [subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path/'ledger.jsonl'), str(k)], env=env)
        for k in range(8)]:
        assert p.wait(120) == 0
    lines = (tmp_path/'ledger.jsonl').read_text().splitlines()
    assert len([json.loads(l) for l in lines]) == 320 and len(Ledger.of(tmp_path).last) == 320

def test_a_ledger_is_no_way_out(tmp_path):
    "A link in place of a ledger is not followed"
    (tmp_path/'other').write_text('mine')
    (tmp_path/'ledger.jsonl').symlink_to(tmp_path/'other')
    with pytest.raises(OSError, match='symbolic link'): Ledger(tmp_path/'ledger.jsonl').add('a', 'broken')
    assert (tmp_path/'other').read_text() == 'mine'

ODD = ['..', '.', '~', '_', '_..', '__', '-', ' ', 'a', 'a.mp4', '8.0', '8.0_', '..mp4', '.mp4', 'x.mp4.mp4',
    '%2e%2e', '..\\x', 'con', 'a\nb', 'a\x7fb', 'a:b', '．．', 'ledger.jsonl', 'unversioned', 'index']
def test_names_of_an_index_stay_inside(tmp_path):
    "Whatever an index calls its recordings, raw files and episodes lie below their folders, or the name is refused; none shares a file with another"
    rng, raw, data, taken = random.Random(0), tmp_path/'raw', tmp_path/'data', 0
    for _ in range(3000):
        paths = ['/'.join(rng.choice(ODD) for _ in range(rng.randint(1, 3))) for _ in range(2)]
        try: entries = RecordingIndex('https://host/', paths).recordings
        except ValueError: continue
        taken += 1
        for e in entries:
            files = [e.raw_path(raw, x) for x in ('.mp4','.jsonl')]
            for p,folder in ((files[0], raw), (files[1], raw), (data/e.name, data)):
                p = Path(os.path.normpath(p))
                assert (
                    p.is_relative_to(folder) and p != folder and p.name not in ('ledger.jsonl',) or p.parent != data
                ), (paths, p)
        assert len({e.name for e in entries}) == len({e.raw_path(raw, '.mp4') for e in entries}) == len(entries), paths
    assert taken > 500
    for base in ('file:///etc', '/etc', 'ftp://host'):
        with pytest.raises(ValueError, match='must be an address'): RecordingIndex(base, ['a'])
