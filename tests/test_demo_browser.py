"""The demo in JupyterLab in a real Chromium, driven as a person would: by clicks and keys.

Chromium is spoken to in its own DevTools protocol, so nothing is needed beyond the browser and what JupyterLab brings.
`DEMO_SHOT=nbs/images/demo.png pytest tests/test_demo_browser.py` takes the picture that 09_demo shows."""
import json, os, secrets, shutil, signal, subprocess, sys, time
from base64 import b64decode
from pathlib import Path
from urllib.request import ProxyHandler, build_opener
import nbformat, psutil, pytest
import numpy as np
import websocket # websocket-client and psutil are JupyterLab's own dependencies

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser',
    'google-chrome'))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here: `apt-get install chromium` (or name one in '
    'the environment variable CHROMIUM)')
local = build_opener(ProxyHandler({})) # never through a proxy
CELL = "from steve1.demo import Demo\ndemo = Demo(seed={seed}, arena='{arena}', prompt='{prompt}')\ndemo"

def wait_for(f, seconds=60, what='it'):
    "What `f` returns once that is something"
    end = time.monotonic()+seconds
    while time.monotonic()<end:
        try:
            if got := f(): return got
        except OSError: pass
        time.sleep(.05)
    raise TimeoutError(f'{what}: nothing after {seconds} s')

class Process:
    "A program with all it starts, ended together"
    def __init__(self, cmd, **kw):
        self.p = subprocess.Popen(list(map(str, cmd)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL, start_new_session=True, **kw)
    def stop(self):
        for sig in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(self.p.pid, sig)
            except ProcessLookupError: break
            try: self.p.wait(5)
            except subprocess.TimeoutExpired: pass

class Browser(Process):
    "A page in a headless Chromium"
    FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --no-proxy-server --hide-scrollbars --remote-debugging-port=0 --window-size=1440,1000'.split()
    def __init__(self, profile):
        super().__init__([CHROMIUM, *self.FLAGS, f'--user-data-dir={profile}', 'about:blank'])
        port = wait_for(lambda: (Path(profile)/'DevToolsActivePort').read_text().split()[:1], what='Chromium')[0]
        page = next(t for t in json.load(local.open(f'http://127.0.0.1:{port}/json')) if t['type']=='page')
        self.ws, self.n = websocket.create_connection(page['webSocketDebuggerUrl'], suppress_origin=True,
            timeout=60, http_no_proxy=['*']), 0

    def call(self, method, **params):
        self.n += 1
        self.ws.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while (m := json.loads(self.ws.recv())).get('id')!=self.n: pass
        if 'error' in m: raise RuntimeError(f"{method}: {m['error']['message']}")
        return m['result']

    def js(self, code):
        r = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in r:
            raise RuntimeError(f"{code}: {r['exceptionDetails']['exception'].get('description')}")
        return r['result'].get('value')

    def wait(self, code, seconds=60): return wait_for(lambda: self.js(f'Boolean({code})'), seconds, code)
    def box(self, css):
        return self.js(
            f"(() => "
            f"{{const e=document.querySelector({css!r}); e.scrollIntoViewIfNeeded(); const r=e.getBoundingClientRect(); return [r.x,r.y,r.width,r.height]}})()"
        )
    def click(self, css):
        x,y,w,h = self.box(css)
        for kind in ('mousePressed','mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, x=x+w/2, y=y+h/2, button='left', clickCount=1)
    def key(self, name, code):
        for kind in ('rawKeyDown','char','keyUp') if name=='Enter' else ('rawKeyDown','keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=name, code=name, windowsVirtualKeyCode=code,
                **(dict(text='\r') if kind=='char' else {}))
    def type(self, css, text):
        self.click(css)
        self.js(f'document.querySelector({css!r}).select()')
        self.call('Input.insertText', text=text); self.key('Enter', 13)
    def shot(self, path, css, pad=0):
        x,y,w,h = self.box(css)
        Path(path).write_bytes(b64decode(self.call('Page.captureScreenshot', clip=dict(x=x-pad, y=y-pad,
            width=w+2*pad, height=h+2*pad, scale=1))['data']))

class Lab(Process):
    "JupyterLab with a notebook that holds the demo, in folders of its own"
    def __init__(self, tmp, **session):
        cell = nbformat.v4.new_code_cell(CELL.format(**session))
        cell.metadata['tags'] = []
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=dict(name='python3',
            language='python', display_name='python3'))), tmp/'demo.ipynb')
        own = {f'JUPYTER_{k}_DIR':str(tmp/k.lower()) for k in ('CONFIG','DATA',
            'RUNTIME')} | {f'JUPYTERLAB_{k}_DIR':str(tmp/k.lower()) for k in ('SETTINGS','WORKSPACES')}
        news = tmp/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
        news.parent.mkdir(parents=True)
        news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        data = Path(os.environ.get('STEVE1_DATA') or ROOT/'data')
        (tmp/'data').mkdir()
        (tmp/'data'/'weights').symlink_to(data/'weights')
        env = dict(os.environ, **own, STEVE1_DATA=str(tmp/'data'), OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT),
            JUPYTER_PREFER_ENV_PATH='1', IPYTHONDIR=str(tmp/'ipython'))
        env.setdefault('NUMBA_CACHE_DIR', str(ROOT/'data'/'cache'/'numba'))
        token = secrets.token_hex(8)
        super().__init__([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root',
            '--ServerApp.ip=127.0.0.1', '--ServerApp.port=0', f'--IdentityProvider.token={token}',
            '--LabApp.expose_app_in_browser=True', f'--ServerApp.root_dir={tmp}'], env=env, cwd=tmp)
        info = wait_for(lambda: next((p.read_text() for p in (tmp/'runtime').glob('jpserver-*.json')), None),
            what='JupyterLab')
        self.url = f"http://127.0.0.1:{json.loads(info)['port']}/doc/tree/demo.ipynb?token={token}"
        wait_for(lambda: local.open(self.url, timeout=5).status==200, what='JupyterLab')

@pytest.fixture
def started(tmp_path):
    running = []
    def start(cls, *args, **kw):
        x = cls.__new__(cls); running.append(x)
        x.__init__(*args, **kw)
        return x
    yield start
    for x in reversed(running): x.stop()

def open_demo(started, tmp_path, **session):
    lab, page = started(Lab, tmp_path, **session), started(Browser, tmp_path/'profile')
    page.call('Page.enable'); page.call('Page.navigate', url=lab.url)
    # before that it would ask for a kernel
    page.wait("[...(window.jupyterapp?.shell?.widgets('main') ?? "
        "[])][0]?.context?.sessionContext?.session?.kernel?.status=='idle'")
    page.js("jupyterapp.commands.execute('notebook:run-all-cells'); true")
    page.wait("(e => e && e.complete && e.naturalWidth)(document.querySelector('.s1 img'))", 90)
    page.js("window.frames_seen = 0; document.querySelector('.s1 img').addEventListener('load', () => "
        "window.frames_seen++); true")
    return page, lab

BUTTON = '.s1-left > .s1-bar button:nth-child(%d)'
PLAY, STEP, FORGET, WORLD, RECORD, KEYS = (BUTTON % i for i in range(1, 7))
text = lambda css: f"(document.querySelector({css!r})?.innerText ?? '')"
metric = (
    lambda name: f"Number([...document.querySelectorAll('.s1-row')].find(r => r.querySelector('span').innerText=={name!r}).querySelector('b').innerText)"
)
steps = "Number(document.querySelector('.s1-title').innerText.match(/step (\\d+)/)[1])"
picture = "document.querySelector('.s1 img').src"

def cpu(process):
    "Seconds of CPU that a program and all it started have used; its kernels by themselves"
    used = [0., 0.]
    for p in (top := psutil.Process(process.p.pid), *top.children(recursive=True)):
        used['ipykernel_launcher' in p.cmdline()] += sum(p.cpu_times()[:2])
    return np.array(used)

def watch(page, lab, n=40):
    "While n steps are played: pictures seen, pictures a second, milliseconds of CPU a step in the kernel and in all else"
    t = page.js(steps)
    page.wait(f'{steps}>{t}')                                              # the line of text moves on every ten steps
    now = lambda: (page.js(f'[{steps}, frames_seen]'), time.monotonic(), cpu(lab), cpu(page))
    (t0,f0), s0, *c0 = now()
    page.wait(f'{steps}>={t0+n}', 90); (t1,f1), s1, *c1 = now()
    ms = 1000*(sum(c1)-sum(c0))/(t1-t0)
    return (f1-f0)/(t1-t0), (f1-f0)/(s1-s0), ms[1], ms[0]

def test_the_demo_is_driven_by_clicks_and_keys(started, tmp_path):
    page, lab = open_demo(started, tmp_path, seed=1_000_000, arena='plains', prompt='unconditional')
    assert page.js("document.querySelector('.s1 img').naturalWidth")==640
    before = page.js(picture); page.click(STEP)
    page.wait(f'{picture}!={before!r} && {steps}==1')                                          # one step, one picture

    page.click(RECORD); page.click(PLAY)
    page.wait(f"{steps}>=20 && {text(PLAY)}.includes('Pause')")
    seen, fps, kernel, rest = watch(page, lab)
    print(f'{fps:.1f} frames a second arrived and were drawn; CPU a frame: {kernel:.0f} ms in the kernel, '
        f'{rest:.0f} ms in server and browser')
    # a picture a step, and never faster than the world
    assert .85<seen<1.15 and fps<21.5
    # so two cores, if they have nothing else to do, hold 20 a second
    assert kernel+rest<100

    page.type('.s1-say input', 'look at the sky')
    # it does what it was told
    page.wait(f"{metric('sky')}>=15")
    # and what is seen comes near to the goal
    page.wait("Number(document.querySelector('.s1-head b').innerText)>.5")
    assert 'look at the sky' in page.js("document.querySelector('.s1-now').innerText")

    page.click('.s1 .noUi-handle')
    for _ in range(4): page.key('ArrowRight', 39)
    page.wait("document.querySelector('.s1 .widget-readout').innerText=='1.50'")               # 0.5 and four quarters
    page.type('.s1-say input', 'qzx a blorb')
    page.wait(f"{text('.s1-note')}.includes('never learned: qzx, blorb')")
    page.click(".s1-chips button[title='dig as far as possible']")
    page.wait(f"{text('.s1-now')}=='dig as far as possible'")
    page.wait(f"{metric('dug')}>=1")

    page.click(PLAY)
    page.wait(f"{text(PLAY)}.includes('Play')")                              # pause
    # the step that was under way ends
    time.sleep(.3)
    t = page.js(steps)
    time.sleep(.5); assert page.js(steps)==t
    page.click(RECORD)
    page.wait(f"{text('.s1-note')}.includes('saved')")
    film, = (tmp_path/'data'/'runs'/'play').glob('*.mp4')
    script = json.loads(film.with_suffix('.json').read_text())
    said = list(dict.fromkeys(script['prompt']))
    assert said==['unconditional', 'look at the sky', 'qzx a blorb', 'dig as far as possible']
    # every frame since Record, and its guidance
    assert len(script['prompt'])==t-1 and 1.5 in script['cond_scale']
    import av
    with av.open(str(film)) as f: assert f.streams.video[0].frames==t-1

    page.click(WORLD); page.wait(f'{steps}==0')
    arenas = "[...document.querySelectorAll('.s1 select')].find(s => [...s.options].some(o => o.value=='lake'))"
    page.js(f"const menu = {arenas}; menu.value='lake'; menu.dispatchEvent(new Event('change', {{bubbles:true}}))")
    page.wait(f"{text('.s1-title')}.includes('lake')")

@pytest.mark.skipif('DEMO_SHOT' not in os.environ, reason='DEMO_SHOT names no picture to take')
def test_picture(started, tmp_path):
    from PIL import Image
    page, _ = open_demo(started, tmp_path, seed=1_000_009, arena='forest', prompt='look at the sky')
    page.click(PLAY); page.wait(f"{metric('sky')}>=60")
    page.click(".s1-chips button[title='chop a tree']")
    page.wait(f"{metric('wood')}>=3 && Number(document.querySelector('.s1-head b').innerText)>.8")
    print(page.js(text('.s1-title')))
    shot = tmp_path/'shot.png'
    page.shot(shot, '.s1')
    # 256 colours: it lies in the repository
    Image.open(shot).convert('RGB').quantize(256, method=2).save(os.environ['DEMO_SHOT'], optimize=True)
