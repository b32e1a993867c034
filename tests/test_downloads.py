"""Downloads against a server on this machine that cuts connections, lies, is busy or has no such file"""
import hashlib, json, multiprocessing, os, re, resource, signal, subprocess, sys, threading, time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import numpy as np
import pytest
import torch
import steve1.base.downloads as downloads
from steve1.base.downloads import DownloadError, download
from steve1.config import repo_root

DATA = np.random.default_rng(0).bytes(1_000_003)
SHA, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()

class Server:
    "Answers with `data`; each request takes the next of `plan`, the last again and again"
    def __init__(self, data=DATA, plan=('ok',), tag='"one"'):
        self.data, self.plan, self.tag, self.ranges, self.lock = data, list(plan), tag, [], threading.Lock()

    def next(self):
        with self.lock: return self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]

    def answer(self, h):
        do, asked = self.next(), h.headers.get('Range')
        self.ranges.append(asked)
        do, _, arg = do.partition(':')
        if do == 'status':
            h.send_response(int(arg))
            h.send_header('Content-Length', 0)
            if arg == '503': h.send_header('Retry-After', '1')
            return h.end_headers()
        if do == 'drop': h.wfile.close(); return
        if do == 'page':
            h.send_response(200)
            h.send_header('Content-Type', 'text/html')
            h.send_header('Content-Length', 6)
            h.end_headers()
            h.wfile.write(b'<html>'); return
        start = int(re.fullmatch(r'bytes=(\d+)-', asked)[1]) if asked and do != 'norange' else 0
        if start and h.headers.get('If-Range') not in (None, self.tag): start = 0     # it is another file now
        if start >= len(self.data) and start:
            h.send_response(416)
            h.send_header('Content-Length', 0); return h.end_headers()
        rest = self.data[start:]
        h.send_response(206 if start else 200)
        if start: h.send_header('Content-Range', f'bytes {start}-{len(self.data)-1}/{len(self.data)}')
        if do == 'chunked': h.send_header('Transfer-Encoding', 'chunked')
        elif do != 'nolength': h.send_header('Content-Length', len(rest))
        if self.tag: h.send_header('ETag', self.tag)
        h.end_headers()
        if do == 'chunked':
            h.wfile.write(b'%x\r\n%s\r\n' % (len(rest), rest) + (b'' if arg else b'0\r\n\r\n'))
            return
        if do == 'slow':
            for i in range(0, len(rest), 20_000):
                h.wfile.write(rest[i:i+20_000])
                h.wfile.flush(); time.sleep(.02)
            return
        h.wfile.write(rest[:int(arg)] if arg else rest)
        if do == 'hang': h.wfile.flush(); time.sleep(3)

@contextmanager
def serving(server):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            try: server.answer(self)
            except (BrokenPipeError, ConnectionResetError): pass
    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        def handle_error(self, *args): pass
    with Quiet(('127.0.0.1', 0), Handler) as s:
        threading.Thread(target=s.serve_forever, args=(.05,), daemon=True).start()
        yield f'http://127.0.0.1:{s.server_port}/w.bin'
        s.shutdown()

@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    "Nobody waits in a test, and how long one would have waited is noted"
    slept = []
    for k in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(downloads, 'time', type('time', (), dict(sleep=staticmethod(slept.append))))
    return slept

def left(folder): return sorted(p.name for p in folder.iterdir())

def test_plain(tmp_path):
    "The file, its folder, a report of progress, nothing else; again: not a single request"
    seen, server = [], Server()
    with serving(server) as url:
        got = download(url, tmp_path/'a'/'w.bin', size=len(DATA), sha256=SHA, md5=MD5, progress=lambda done,
            total: seen.append((done, total)))
        assert got.read_bytes() == DATA and left(tmp_path/'a') == ['w.bin'] and seen[-1] == (len(DATA), len(DATA))
        for known in (dict(), dict(size=len(DATA)), dict(sha256=SHA.upper()), dict(md5=MD5)):
            download(url, got, **known)
        assert len(server.ranges) == 1
        got.write_bytes(b'something else'); download(url, got, md5=MD5)
        assert got.read_bytes() == DATA

@pytest.mark.parametrize('cut', ['cut:300000', 'hang:300000'])
def test_broken_connections(tmp_path, cut, pauses):
    "Cut or silent after 300,000 bytes each time: four requests, each for the rest"
    server = Server(plan=[cut])
    with serving(server) as url: assert download(url, tmp_path/'w.bin', sha256=SHA, timeout=.5).read_bytes() == DATA
    assert server.ranges == [None, 'bytes=300000-', 'bytes=600000-', 'bytes=900000-'] and left(tmp_path) == ['w.bin']
    # every try brought something: the pause does not grow
    assert len(pauses) == 3 and max(pauses) <= 1

def test_short_without_progress(tmp_path, pauses):
    "A server that has lost the end: given up after the tries that brought nothing, the part is kept, and another source completes it"
    with serving(Server(plan=['cut:700000', 'cut:0'])) as url:
        with pytest.raises(DownloadError, match='700,000 bytes here: call again') as e:
            download(url, tmp_path/'w.bin', sha256=SHA, retries=3)
    assert not e.value.permanent and left(tmp_path) == ['.tmp-w.bin.note', '.tmp-w.bin.part'] and len(pauses) == 3
    assert .5 <= pauses[0] <= 1 <= pauses[1] <= 2 <= pauses[2] <= 4
    server = Server()
    with serving(server) as url: assert download(url, tmp_path/'w.bin', sha256=SHA).read_bytes() == DATA
    assert server.ranges == ['bytes=700000-'] and left(tmp_path) == ['w.bin']

def test_range_ignored(tmp_path):
    "A server that always begins at the beginning: so do we"
    with serving(Server(plan=['cut:400000', 'norange'])) as url:
        assert download(url, tmp_path/'w.bin').read_bytes() == DATA

def test_changed_between(tmp_path):
    "The file was replaced between two attempts: its tag says so, and the halves are not sewn together"
    server, new = Server(plan=['cut:400000']), bytes(reversed(DATA))
    with serving(server) as url:
        with pytest.raises(DownloadError):
            server.plan = ['cut:400000', 'status:404']
            download(url, tmp_path/'w.bin')
        server.data, server.tag, server.plan = new, '"two"', ['ok']
        assert download(url, tmp_path/'w.bin').read_bytes() == new

def test_changed_without_tags(tmp_path):
    "No tag: another length betrays it; with the same length the checksum does, and one fresh start mends it"
    for new in (DATA[::-1] + b'!', DATA[::-1]):
        server = Server(plan=['cut:400000', 'status:404'], tag='')
        with serving(server) as url:
            with pytest.raises(DownloadError): download(url, tmp_path/'w.bin', sha256=hashlib.sha256(new).hexdigest())
            server.data, server.plan = new, ['ok']
            assert download(url, tmp_path/'w.bin', sha256=hashlib.sha256(new).hexdigest()).read_bytes() == new
        (tmp_path/'w.bin').unlink()

@pytest.mark.parametrize('code', [400, 401, 403, 404, 410])
def test_not_there(tmp_path, code, pauses):
    "What will not pass is not asked for twice"
    server = Server(plan=[f'status:{code}'])
    with serving(server) as url:
        with pytest.raises(DownloadError, match=str(code)) as e: download(url, tmp_path/'w.bin')
    assert e.value.permanent and len(server.ranges) == 1 and not pauses and left(tmp_path) == []

def test_busy(tmp_path, pauses):
    "What passes is waited for, as long as the server asks"
    with serving(Server(plan=['status:503', 'status:500', 'status:429', 'drop', 'ok'])) as url:
        assert download(url, tmp_path/'w.bin').read_bytes() == DATA
    assert pauses[0] == 1 and len(pauses) == 4 and .5 <= pauses[1]/2 <= 1

def test_nobody_there(tmp_path, pauses):
    "No server at all: tried a few times, then said"
    with serving(Server()) as url: pass
    with pytest.raises(DownloadError, match='refused.*gave up after 3 tries') as e:
        download(url, tmp_path/'w.bin', retries=2)
    assert not e.value.permanent and len(pauses) == 2

def test_wrong_content(tmp_path):
    "Another file, of another or the same length: an error, and nothing is left of it"
    for known,says in ((dict(size=5), '5 are expected'), (dict(sha256='0'*64), f'has sha256 {SHA}'),
        (dict(md5='0'*32), f'has md5 {MD5}')):
        with serving(Server()) as url:
            with pytest.raises(DownloadError, match=says) as e: download(url, tmp_path/'w.bin', **known)
        assert e.value.permanent and not (tmp_path/'w.bin').exists()
    assert left(tmp_path) == []

def test_web_page(tmp_path):
    "A log-in page or a warning about viruses is not a file"
    with serving(Server(plan=['page'])) as url:
        with pytest.raises(DownloadError, match='sent a web page') as e: download(url, tmp_path/'w.bin')
    assert e.value.permanent and not (tmp_path/'w.bin').exists()

def test_unknown_length(tmp_path):
    "Chunks end by themselves and a chunk that is cut is noticed; a connection that just ends says nothing, so a size is wanted"
    with serving(Server(plan=['chunked:cut', 'chunked'])) as url:
        assert download(url, tmp_path/'a').read_bytes() == DATA
    with serving(Server(plan=['nolength'])) as url:
        with pytest.raises(DownloadError, match='does not say how long'): download(url, tmp_path/'b')
        assert download(url, tmp_path/'b', size=len(DATA)).read_bytes() == DATA
    with serving(Server(plan=['nolength:500000', 'nolength'])) as url:
        assert download(url, tmp_path/'c', size=len(DATA)).read_bytes() == DATA

def test_part_longer_than_the_file(tmp_path):
    "A part of something larger is dropped"
    (tmp_path/'.tmp-w.bin.part').write_bytes(DATA + b'more')
    with serving(Server()) as url: assert download(url, tmp_path/'w.bin').read_bytes() == DATA

@pytest.mark.parametrize('note', [None, '', '{"tag": "\\"one', '[1]', '{"tag": "\\"other\\"", "total": 5}', '['*99999,
    '{"tag": [1]}', '{"tag": "a\\nb"}', '{"tag": "é\u2028"}', '{"total": 1e999}'])
def test_part_without_its_note(tmp_path, note):
    "A part whose note is gone, cut or about another file is not gone on with, unless a checksum can tell"
    (tmp_path/'.tmp-w.bin.part').write_bytes(b'x'*1000)
    if note is not None: (tmp_path/'.tmp-w.bin.note').write_text(note)
    with serving(Server()) as url: assert download(url, tmp_path/'w.bin').read_bytes() == DATA
    assert left(tmp_path) == ['w.bin']

def test_part_that_was_whole(tmp_path):
    "Killed between the last byte and the rename"
    (tmp_path/'.tmp-w.bin.part').write_bytes(DATA)
    with serving(Server()) as url: assert download(url, tmp_path/'w.bin', sha256=SHA).read_bytes() == DATA

def test_empty_file(tmp_path):
    "A file of no bytes is a file"
    with serving(Server(data=b'')) as url: assert download(url, tmp_path/'w.bin').read_bytes() == b''

def test_impossible(tmp_path):
    "An address that is none, a folder in the place"
    for url in ('file:///etc/hostname', 'w.bin'):
        with pytest.raises(ValueError, match='no http'): download(url, tmp_path/'w.bin')
    with pytest.raises(IsADirectoryError, match='is a folder'): download('http://127.0.0.1/', tmp_path)

@pytest.mark.parametrize('data,plan,rounds', [(DATA, 'slow', 1), (DATA[:5000], 'ok', 40)], ids=['slow', 'fast'])
def test_together(tmp_path, data, plan, rounds):
    "Eight threads want one file: one fetches it, and the others find it, also where its end and their beginning meet"
    before = sys.getswitchinterval(); sys.setswitchinterval(1e-5)
    try:
        for i in range(rounds):
            server, path, got = Server(data, plan=[plan]), tmp_path/f'{i}'/'w.bin', []
            with serving(server) as url:
                threads = [threading.Thread(target=lambda: got.append(download(url, path,
                    sha256=hashlib.sha256(data).hexdigest()).read_bytes() == data)) for _ in range(8)]
                for t in threads: t.start()
                for t in threads: t.join()
            assert got == [True]*8 and len(server.ranges) == 1 and left(path.parent) == ['w.bin']
    finally: sys.setswitchinterval(before)

def test_killed(tmp_path):
    "A process killed in the middle leaves no file under the final name, and the next one goes on from there"
    server = Server(plan=['slow'])
    with serving(server) as url:
        code = f'from steve1.base.downloads import download; download({url!r}, {str(tmp_path/"w.bin")!r})'
        p = subprocess.Popen([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(repo_root())))
        part, end = tmp_path/'.tmp-w.bin.part', time.monotonic() + 30
        while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < end: time.sleep(.01)
        p.send_signal(signal.SIGKILL); p.wait()
        assert left(tmp_path) == ['.tmp-w.bin.note', '.tmp-w.bin.part']
        assert download(url, tmp_path/'w.bin', sha256=SHA).read_bytes() == DATA
    assert int(server.ranges[-1][6:-1]) > 100_000 and left(tmp_path) == ['w.bin']

def test_full_disk(tmp_path, pauses):
    "A disk that is full is not tried again, and the error names it; the part that fits is kept for the next call"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(Server()) as url:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, old[1]))
        try:
            with pytest.raises(DownloadError, match='w.bin.part could not be written.*on its disk') as e:
                download(url, tmp_path/'w.bin', sha256=SHA)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert e.value.permanent and not pauses and left(tmp_path) == ['.tmp-w.bin.note', '.tmp-w.bin.part']
        assert download(url, tmp_path/'w.bin', sha256=SHA).read_bytes() == DATA and left(tmp_path) == ['w.bin']

@pytest.mark.parametrize('name', ['.tmp-w.bin.part', '.tmp-w.bin.note', 'w.bin'])
def test_links(tmp_path, name):
    "A link in the place of the part, its note or the file itself: nothing is written through it"
    (tmp_path/'secret').write_text('precious'); (tmp_path/'in').mkdir()
    (tmp_path/'in'/name).symlink_to(tmp_path/'secret')
    with serving(Server()) as url:
        try:
            assert download(url, tmp_path/'in'/'w.bin',
                sha256=SHA).read_bytes() == DATA and not (tmp_path/'in'/'w.bin').is_symlink()
        except OSError as e: assert 'is a symbolic link' in str(e)
    assert (tmp_path/'secret').read_text() == 'precious'

def _note_download(path):
    from steve1.models.published import _write_ledger
    _write_ledger(path, 'http://x')

def test_ledger_written_by_eight(tmp_path):
    "Eight processes add a file each to one ledger: all eight stand in it"
    from steve1.models.published import _read_ledger
    for i in range(8): (tmp_path/f'{i}.pt').write_text(str(i))
    adders = [multiprocessing.get_context('fork').Process(target=_note_download, args=(tmp_path/f'{i}.pt',))
        for i in range(8)]
    for p in adders: p.start()
    for p in adders: p.join()
    assert sorted(_read_ledger(tmp_path)) == [f'{i}.pt' for i in range(8)]

def test_command(tmp_path):
    "`steve1_download` from a mirror that breaks off again and again: progress, the ledger, one message and status 1 for what is not there"
    torch.save(
        {
            k: torch.randn(shape)
            for k, shape in json.loads((repo_root() / 'tests' / 'golden' / 'prior_keys.json').read_text())['small'][
                'tensors'
            ]
        },
        tmp_path / 'source.pt',
    )
    data = (tmp_path/'source.pt').read_bytes()
    server = Server(data, plan=[f'cut:{len(data)//2}'])
    def run(*args):
        (tmp_path/'steve1_download').write_text('import sys\nfrom steve1.models.published import '
            'download_cli\nsys.exit(download_cli())\n')
        return subprocess.run([sys.executable, tmp_path/'steve1_download', *args],
            env=dict(os.environ, PYTHONPATH=str(repo_root()), STEVE1_DATA=str(tmp_path)), capture_output=True,
            text=True)
    with serving(server) as url:
        mirror, folder = url.rpartition('/')[0], tmp_path/'weights'/'published'
        got = run('steve1_prior.pt', '--mirror', mirror)
        assert got.returncode == 0, got.stderr
        assert (folder/'steve1_prior.pt').read_bytes() == data and left(folder) == ['published.json', 'steve1_prior.pt']
        assert (
            json.loads((folder / 'published.json').read_text())['steve1_prior.pt']['sha256']
            == hashlib.sha256(data).hexdigest()
        )
        n = len(server.ranges)
        assert n == 3
        server.plan = ['status:404']                       # what is here already is not asked for
        got = run('2x.model', 'steve1_prior.pt', '--mirror', mirror)
        assert (
            got.returncode == 1
            and '404' in got.stderr
            and 'Traceback' not in got.stderr
            and 'steve1_prior.pt' in got.stdout
            and len(server.ranges) == n + 1
        )

def test_command_without_a_network(capsys):
    "What the command says by itself"
    from steve1.models.published import download_cli
    with pytest.raises(SystemExit): download_cli(['steve3.weights'])
    assert "steve1_download: 'steve3.weights' is no published file" in capsys.readouterr().err
    download_cli(['--list'])
    download_cli(['idm', '--dry_run', '--mirror', 'http://127.0.0.1:1/'])
    said = capsys.readouterr().out
    assert 'attn.pth' in said and 'http://127.0.0.1:1/4x_idm.model ->' in said
