"""Run every notebook and every test file, each in a process of its own with a time limit.

The last line is `N passed, N failed` (notebooks and tests counted alike); any failure, or nothing at all, is a non-zero exit.
`python tests/run_all.py 02_policy test_train` runs those of these names alone."""
import atexit, multiprocessing, os, signal, subprocess, sys, tempfile, time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from repo import notebooks

LIMIT = float(os.environ.get('TEST_LIMIT', 300)) # seconds for one notebook or test file
JOBS = int(os.environ.get('TEST_JOBS', 2))       # at a time
THREADS = {f'{k}_NUM_THREADS':'1' for k in ('OMP', 'MKL', 'OPENBLAS')}
ENV = dict(os.environ, IN_TEST='1', MPLBACKEND='agg', **THREADS)
ENV.setdefault('NUMBA_CACHE_DIR', str(ROOT/'data'/'cache'/'numba'))

OTHERS = ['torch', 'torch._dynamo', 'numpy', 'pandas', 'matplotlib.pyplot', 'cv2', 'av', 'yaml', 'numba',
    'safetensors.torch', 'accelerate', 'fsspec',
    'gymnasium', 'tyro', 'fastcore.test',
        'nbdev.test'] # other people's packages that most notebooks import; what is missing is left out

class Forked:
    "A notebook in a process forked from one that has `OTHERS` imported, which saves it some three seconds; the part of Popen's interface that `run` needs"
    def __init__(self, path, out):
        os.environ.update(ENV) # the server is started with it
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(OTHERS)
        self.process = context.Process(target=notebook, args=(path, out.name))
        self.process.start()
        self.pid = self.process.pid

    def wait(self, limit=None):
        self.process.join(limit)
        if self.process.exitcode is None: raise subprocess.TimeoutExpired(str(self.pid), limit)
        return self.process.exitcode

def notebook(path, out):
    "What such a process does: `nbdev_test`, as the command does it"
    os.setsid()
    with open(out, 'a') as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
    os.chdir(ROOT)
    sys.path[:] = [p for p in sys.path if p not in (str(ROOT/'tests'), str(ROOT/'tools'))]
    from nbdev.test import nbdev_test
    try: nbdev_test(path=path, n_workers=0)
    finally: atexit._run_exitfuncs() # a forked process would leave its temporary folders

def run(start, limit=None):
    "(exit status or None when it ran out of time, its output, seconds) of the process that `start` begins; its output goes to the file it is given"
    limit, began = limit or LIMIT, time.time()
    # a file: a grandchild that keeps a pipe open cannot hold us
    with tempfile.NamedTemporaryFile('w+', errors='replace') as out:
        p = start(out)
        try: status = p.wait(limit)
        except subprocess.TimeoutExpired: status = None
        finally:
            try: os.killpg(p.pid, signal.SIGKILL) # what it started and left behind, too
            except (ProcessLookupError, PermissionError): pass
            p.wait()
        out.seek(0)
        text = out.read()
        if status is None: text += f'\nstopped after {limit:.0f} s'
    return status, text, time.time()-began

def command(*cmd):
    "Starts a command of its own"
    return lambda out: subprocess.Popen(cmd, cwd=ROOT, env=ENV, stdout=out, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, start_new_session=True)

def run_notebook(path, limit=None):
    "(passed, failed, output, seconds)"
    program = str(Path(sys.executable).with_name('nbdev_test'))
    start = (lambda out: Forked(str(path), out)) if hasattr(os, 'fork') else command(program, '--path', str(path),
        '--n_workers', '0')
    status, text, secs = run(start, limit)
    ok = status == 0 and 'Success.' in text # "no files" also exits 0
    return int(ok), int(not ok), text, secs

def run_pytest(path, limit=None):
    "(passed, failed, output, seconds); a session that reports nothing, or fails outside a test, is a failure"
    with tempfile.TemporaryDirectory() as tmp:
        xml = Path(tmp)/'report.xml'
        status, text, secs = run(command(sys.executable, '-m', 'pytest', '-q', '--color=no', f'--junitxml={xml}',
            str(path)), limit)
        total = dict.fromkeys(('tests', 'failures', 'errors', 'skipped'), 0)
        for suite in ET.parse(xml).getroot().iter('testsuite') if xml.exists() else ():
            for k in total: total[k] += int(suite.get(k, 0))
    failed = total['failures'] + total['errors']
    if status != 0: failed = max(failed, 1)
    return total['tests'] - total['failures'] - total['errors'] - total['skipped'], failed, text, secs

LONG = ('test_train_processes', 'test_train', 'test_env_faults', 'test_contractor', 'test_data_faults',
    'test_wheel', '05_train', 'test_recordings',
    'test_foreign', 'test_site', 'test_demo_browser', 'experts',
        'bench') # these first, so that nobody waits for them at the end

def main(names):
    found = [(run_pytest, p) for p in (ROOT/'tests').glob('test_*.py')] + [(run_notebook, p) for p in notebooks()]
    found.sort(key=lambda j: (LONG.index(j[1].stem) if j[1].stem in LONG else len(LONG), j[1]))
    jobs = {p.relative_to(ROOT).as_posix():(f, p) for f,p in found}
    jobs = {n:j for n,j in jobs.items() if not names or Path(n).stem in names}
    passed = failed = 0
    start = time.time()
    with ThreadPoolExecutor(JOBS) as pool:
        done = {pool.submit(*job):name for name,job in jobs.items()}
        for f in as_completed(done):
            ok, bad, text, secs = f.result()
            passed, failed = passed+ok, failed+bad
            print(f"{'FAIL' if bad else 'ok':4} {secs:6.1f} s  {done[f]}", flush=True)
            if bad: print('\n'.join('    '+l for l in text.strip().splitlines()[-60:]), flush=True)
    if not jobs:
        print('Nothing was run.')
        failed += 1
    print(f'in {time.time()-start:.0f} s')
    print(f'{passed} passed, {failed} failed')
    return failed > 0

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
