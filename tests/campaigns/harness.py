"""What campaigns share: a folder for each case, child processes with limits, toy data, and comparison of folders.

A campaign is a module of this folder. Its docstring says what it tries; it has two functions:

- `cases(rng)` yields cases, values that JSON can hold: all that is needed to repeat a case, its own seed included.
  `rng` is a `random.Random`. The iterator may be endless.
- `run(case)` tries one case and returns 'ok', or a class of failure and a detail, such as
  'differs: latest.safetensors'. An exception that it raises is a failure of class 'raised'.

A case works in `case_folder()`, which is empty when it begins and removed when it ends; the folder of a failure
is kept. What all cases of a campaign need lies in `campaign_folder()`. Both are below the campaign's temporary folder.
`LIMIT = 300` in a campaign changes the seconds a case may take before it counts as 'hang'."""
import contextlib, ctypes, gc, hashlib, os, resource, shutil, signal, subprocess, sys, time, traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT/'data'/'episodes'/'sample'
_folders = {}
private = set()   # descriptors that children close

def set_folders(campaign, case):
    "The runner says where a campaign and its present case work"
    _folders.update(campaign=Path(campaign), case=Path(case))

def campaign_folder(): return _folders['campaign']
def case_folder(): return _folders['case']

def set_data(path):
    "Make a folder the data root of this process and its children"
    os.environ['STEVE1_DATA'] = str(path)
    return Path(path)

# --- child processes

def adopt_orphans():
    "Processes that lose their parent become children of this one (Linux), so that `descendants` finds them"
    if sys.platform.startswith('linux'): ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

def private_mounts():
    "A /dev/shm and mounts of this process's own, where that is allowed (root on Linux): what others leave there is not ours"
    if not sys.platform.startswith('linux') or ctypes.CDLL(None).unshare(0x00020000): return
    if subprocess.run(['mount', '--make-rprivate', '/'], capture_output=True).returncode: return
    subprocess.run(['mount', '-t', 'tmpfs', 'none', '/dev/shm'], capture_output=True)

def processes(): return [p for p in (os.listdir('/proc') if os.path.isdir('/proc/self') else ()) if p.isdigit()]

def descendants(pid=None):
    "Living processes that descend from a process: a dict of pid -> command line"
    parents, found = {}, [pid or os.getpid()]
    for p in processes():
        with contextlib.suppress(OSError, IndexError):
            state, parent = Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[:2]
            if state not in 'ZX': parents.setdefault(int(parent), []).append(int(p))
    for p in found: found += parents.get(p, [])
    out = {}
    for p in found[1:]:
        with contextlib.suppress(OSError):
            out[p] = Path(f'/proc/{p}/cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace').strip()
    return out

def reap():
    "Collect ended children of this process, adopted ones included, except those that a `Child` waits for"
    for p in processes():
        with contextlib.suppress(OSError, IndexError, ChildProcessError):
            state, parent = Path(f'/proc/{p}/stat').read_text().rsplit(')', 1)[1].split()[:2]
            if state == 'Z' and int(parent) == os.getpid() and int(p) not in _waited: os.waitpid(int(p), os.WNOHANG)

def outliving(seconds=10., allowed=()):
    "Descendants that are alive still after some seconds, as text; they are killed. '' is what should come back"
    until = time.monotonic()+seconds
    while True:
        reap()
        left = {p:c for p,c in descendants().items() if p not in allowed and 'resource_tracker' not in c}
        if not left or time.monotonic() > until: break
        time.sleep(.05)
    for p in left:
        with contextlib.suppress(OSError): os.kill(p, signal.SIGKILL)
    return '; '.join(f'{c[:120]}' for c in left.values())

_waited = set()

@dataclass
class Child:
    "A process in a session of its own; its output goes to a file"
    pid: int
    said: Path     # Standard output and errors
    status: int|None = None # Exit status; minus the signal that ended it; None: runs
    seconds: float = 0.
    def __post_init__(self):
        self.since = time.monotonic(); _waited.add(self.pid)

    def alive(self):
        if self.status is None:
            pid, how = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status, self.seconds = os.waitstatus_to_exitcode(how), time.monotonic()-self.since
                _waited.discard(pid)
        return self.status is None

    def wait(self, seconds=120.):
        "Its exit status; 'hang' if it had to be killed"
        until, pause = time.monotonic()+seconds, .001
        while self.alive():
            if time.monotonic() > until: self.kill(); return 'hang'
            time.sleep(pause); pause = min(pause*1.3, .02)
        return self.status

    def send(self, sig, group=True):
        "Send a signal to it, with its session or alone; was it alive?"
        if not self.alive(): return False
        if group: # before its setsid a new child is in no session of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sig); return True
        os.kill(self.pid, sig)
        return True

    def kill(self, group=True):
        "SIGKILL; did it end by that?"
        hit = self.send(signal.SIGKILL, group)
        while self.alive(): time.sleep(.001)
        return hit and self.status == -signal.SIGKILL

    def text(self): return self.said.read_text(errors='replace') if self.said.exists() else ''
    def last(self): return (self.text().strip().splitlines() or [''])[-1][:300]

def _limit(memory, file_size):
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)     # as Python does: EFBIG instead of death
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    if memory is not None:
        held = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held+int(memory*1e6),)*2)

def fork(f, *args, env=(), memory=None, file_size=None, said=None):
    """Call a function in a copy of this process.

    env: variables that are changed. memory: MB beyond what this process holds. file_size: bytes of its largest file;
    with it, only the exception that ends the function is said."""
    said = Path(said or case_folder().with_name('said.txt'))
    gc.collect()
    sys.stdout.flush(); sys.stderr.flush()
    pid = os.fork()
    if pid: return Child(pid, said)
    status = 70
    try:
        os.setsid()
        for fd in private: os.close(fd)
        for s,h in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGHUP, signal.SIG_DFL)):
            signal.signal(s, h)
        os.environ.update(env)
        null, out = os.open(os.devnull, os.O_RDWR), os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        first = out if file_size is None else null
        os.dup2(null, 0)
        os.dup2(first, 1); os.dup2(first, 2)
        # not those of pytest
        sys.stdout, sys.stderr = (open(fd, 'w', 1, errors='replace', closefd=False) for fd in (1, 2))
        _limit(memory, file_size)
        f(*args)
        status = 0
    except SystemExit as e: status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,)*2)
            os.dup2(out, 2)
        status = 1; traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush(); sys.stderr.flush()
        os._exit(status)

def command(words, env=(), memory=None, file_size=None, said=None, stdin=subprocess.DEVNULL, stdout=None):
    "Start a command; arguments as for `fork`. Names such as 'steve1_embed' are found beside this Python"
    said = Path(said or case_folder().with_name('said.txt'))
    here = Path(sys.executable).parent/str(words[0])
    words = [str(here) if here.exists() else str(words[0]), *map(str, words[1:])]
    with open(said, 'wb') as out:
        p = subprocess.Popen(words, env=dict(os.environ) | dict(env), stdin=stdin, stdout=stdout or out,
            stderr=out, start_new_session=True,
            preexec_fn=lambda: _limit(memory, file_size))
    p.returncode = 0          # `Child` waits for it, not subprocess
    return Child(p.pid, said)

# --- folders

def tree(folder, skip=lambda path: False):
    "Relative path -> hash of every file that is no symbolic link; `skip` sees the relative path"
    folder, out = Path(folder), {}
    for p in sorted(folder.rglob('*')):
        rel = p.relative_to(folder)
        if p.is_file() and not p.is_symlink() and not skip(rel):
            out[rel.as_posix()] = hashlib.sha256(p.read_bytes()).hexdigest()[:16]
    return out

def difference(a, b):
    "Keys whose values differ, or that one of two dicts lacks"
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))

def is_temporary(rel): return any(x.startswith('.tmp-') for x in Path(rel).parts)

def temporary(folder):
    "Temporary files and folders below a folder"
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('.tmp-*'))

def shared_memory():
    "Names in /dev/shm"
    return set(os.listdir('/dev/shm')) if os.path.isdir('/dev/shm') else set()

def retry(f, seconds=10.):
    "Remove a file or a folder that a dying process may still write to"
    until = time.monotonic()+seconds
    while os.path.lexists(f):
        if Path(f).is_dir() and not Path(f).is_symlink(): shutil.rmtree(f, ignore_errors=True)
        else: Path(f).unlink()
        if time.monotonic() > until: raise TimeoutError(f'{f} cannot be removed')

# --- toy data

def toy_data(root, n_episodes=8, n_steps=90):
    "Episodes of noise in the tiny preset's size, embedded with noise: samplings 'tiny' and 'old' below `root`"
    import numpy as np
    from steve1.data.sampling import make_sampling
    from steve1.episodes import EpisodeWriter
    from steve1.policy import PolicyConfig
    set_data(root)
    cfg, rng = PolicyConfig.preset('tiny'), np.random.default_rng(0)
    for name,k in (('tiny', n_episodes), ('old', 4)):
        for e in range(k):
            frames = rng.integers(0, 255, (n_steps,*cfg.image_size,3), dtype=np.uint8)
            with EpisodeWriter(Path(root)/'datasets'/name/f'{e:03d}', cfg.image_size, seed=e, source='toy') as w:
                w.add_many(frames, dict(forward=rng.integers(0, 2, n_steps), camera=rng.choice([0.,3.], (n_steps,2))))
                embeds = rng.standard_normal((n_steps, cfg.d_goal))
                embeds[:15] = np.nan
                w.add_embeds(embeds, 'noise')
        make_sampling(name, [name], val_share=1/4, seed=0)
