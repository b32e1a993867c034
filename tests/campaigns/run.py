"""Random faults against the whole library: `python tests/campaigns/run.py --minutes 60 [CAMPAIGN ...]` or `make torture`.

The time is shared over all campaigns in rounds. The last table (`last.md`, `last.json`) and what is left of each
failure are in data/torture/. `--repeat FILE` runs the case of a failure again; `--list` lists the campaigns.
The exit status is 1 if any case failed. `harness.py` says what a campaign is."""
import argparse, ast, collections, importlib, json, os, random, select, shutil, signal, subprocess, sys, tempfile, time, traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
import harness

LIMIT = 180.       # seconds for one case, unless its campaign says otherwise
KEPT = 30_000_000  # bytes of a failure's files that are kept
ENOUGH = 25        # failures after which a campaign is ended: they are most likely of one kind
SETUP = 600.       # seconds until a campaign's first case ends, its preparation included

def campaigns():
    "name -> first line of the docstring"
    files = sorted(p for p in HERE.glob('*.py') if p.stem not in ('run', 'harness') and not p.stem.startswith('_'))
    return {p.stem:ast.get_docstring(ast.parse(p.read_text(encoding='utf-8'))).splitlines()[0] for p in files}

# --- the worker: a process for each campaign, which does cases while it is asked to

def case_rng(seed, name): return random.Random(f'{seed}/{name}')

def try_case(module, case):
    "(outcome, traceback)"
    harness.retry(harness.case_folder())
    harness.case_folder().mkdir(parents=True)
    for f in harness.campaign_folder().glob('said*.txt'): f.unlink()
    try: return str(module.run(case)), ''
    except Exception as e: return f'raised: {type(e).__name__}: {e}'[:600], traceback.format_exc()

def worker(name, seed, folder):
    "Serve the runner: a line of seconds comes in, lines of JSON go out"
    replies = os.dup(1)
    os.dup2(2, 1)
    harness.private.add(replies)
    harness.adopt_orphans()
    harness.private_mounts()
    harness.set_folders(folder, Path(folder)/'case')
    def say(**kw): os.write(replies, (json.dumps(kw)+'\n').encode())
    module = importlib.import_module(name)
    say(limit=getattr(module, 'LIMIT', LIMIT))
    cases = iter(module.cases(case_rng(seed, name)))
    while line := sys.stdin.readline():
        until = time.monotonic()+float(line)
        while time.monotonic() < until:
            if (case := next(cases, None)) is None: break
            say(begun=case)
            t0 = time.monotonic()
            outcome, trace = try_case(module, case)
            say(case=case, outcome=outcome, trace=trace, seconds=round(time.monotonic()-t0, 2))
            if outcome != 'ok': sys.stdin.readline() # until its files are kept
        say(done=case is None)

# --- the runner

def snapshot(out):
    "A copy of the repository, which does not change while campaigns run; the repository itself where git does not know it"
    listed = subprocess.run(['git', '-C', str(ROOT), 'ls-files', '-z', '--cached', '--others',
        '--exclude-standard'], capture_output=True, text=True)
    names = [n for n in listed.stdout.split('\0') if n and (ROOT/n).is_file()]
    if listed.returncode or not names: return ROOT
    copy, names = out.resolve()/'repo', set(names)
    for p in [q for q in copy.rglob('*') if q.is_file() or q.is_symlink()] if copy.exists() else ():
        if p.relative_to(copy).as_posix() not in names: p.unlink()
    for n in names:
        a, b = ROOT/n, copy/n
        if b.exists() and (a.stat().st_mtime_ns, a.stat().st_size) == (b.stat().st_mtime_ns, b.stat().st_size): continue
        b.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(a, b)
    return copy

class Campaign:
    "A campaign's worker and what its cases came to"
    def __init__(self, name, seed, work, out, repo=ROOT):
        self.name, self.seed, self.folder, self.out, self.repo = name, seed, work/name, out, repo
        self.counts, self.failures, self.seconds, self.finished = collections.Counter(), [], 0., False
        self.p, self.starts = None, 0

    def start(self):
        (self.folder/'tmp').mkdir(parents=True, exist_ok=True)
        one = {f'{k}_NUM_THREADS':'1' for k in ('OMP', 'MKL', 'OPENBLAS')}
        env = dict(os.environ, **one, TMPDIR=str(self.folder/'tmp'), PYTHONPATH=str(self.repo), MPLBACKEND='agg',
            PYTHONUNBUFFERED='1',
            STEVE1_DATA=str(self.folder/'data'), NUMBA_CACHE_DIR=os.environ.get('NUMBA_CACHE_DIR',
                str(ROOT/'data'/'cache'/'numba')))
        env.pop('STEVE1_TRACEBACK', None)
        # a campaign that was ended goes on with other cases
        seed = f'{self.seed}+{self.starts}' if self.starts else self.seed
        script = self.repo/HERE.relative_to(ROOT)/'run.py'
        cmd = [sys.executable, str(script), '--worker', self.name, str(seed), str(self.folder)]
        self.log = open(self.folder/'log.txt', 'ab')
        self.p = subprocess.Popen(cmd, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            cwd=self.folder, start_new_session=True)
        self.starts, self.rest, self.limit, self.begun = self.starts+1, b'', LIMIT, None

    def read(self, seconds):
        "The next line of the worker, or None: it ended or was silent for so long"
        until = time.monotonic()+seconds
        while b'\n' not in self.rest:
            ready = select.select([self.p.stdout], [], [], max(0, until-time.monotonic()))[0]
            data = os.read(self.p.stdout.fileno(), 65536) if ready else b''
            if ready and not data: # it has ended
                try: self.p.wait(10)
                except subprocess.TimeoutExpired: pass
            if not data: return None
            self.rest += data
        line, _, self.rest = self.rest.partition(b'\n')
        return json.loads(line)

    def tell(self, what):
        try:
            self.p.stdin.write(f'{what}\n'.encode())
            self.p.stdin.flush()
        except BrokenPipeError: pass

    def end(self):
        if not self.p: return
        family = [self.p.pid, *harness.descendants(self.p.pid)]
        for p in family:
            try: os.kill(p, signal.SIGKILL)
            except ProcessLookupError: pass
        self.p.wait()
        self.p.stdin.close()
        self.p.stdout.close(); self.log.close()
        self.p = None

    def slice(self, seconds):
        "Do cases for some seconds"
        t0 = time.monotonic()
        if self.p is None: self.start()
        self.tell(seconds)
        first = not self.counts
        while True:
            got = self.read(SETUP if first or self.begun is None else self.limit)
            if got is None:
                ended = self.p.poll()
                how = 'hang: no end' if ended is None else f'crash: the process of the campaign ended with {ended}'
                self.end()
                self.note(self.begun, f'{how}', (self.folder/'log.txt').read_text(errors='replace')[-3000:])
                if self.begun is None: self.finished = True                 # it does not even start
                break
            if 'limit' in got: self.limit = got['limit']
            elif 'begun' in got: self.begun = got['begun']
            elif 'outcome' in got:
                self.note(got['case'], got['outcome'], got['trace'])
                first = False
                if got['outcome'] != 'ok': self.tell('noted')
                if self.finished: self.end(); break
            else: self.finished |= got['done']; break
        self.seconds += time.monotonic()-t0

    def note(self, case, outcome, trace):
        kind = outcome.partition(':')[0]
        self.counts[kind] += 1
        if kind == 'ok': return
        if len(self.failures) == ENOUGH-1:
            self.finished = True
            print(f'{self.name} ends: {ENOUGH} failures', flush=True)
        kept = self.out/'failures'/f'{self.name}-{len(self.failures)+1}'
        kept.mkdir(parents=True)
        self.failures.append(dict(case=case, outcome=outcome, kept=kept.name))
        print(f'{self.name}: {outcome[:300]}\n    {json.dumps(case)[:300]}\n    python tests/campaigns/run.py '
            f'--repeat {os.path.relpath(kept/"case.json")}', flush=True)
        (kept/'case.json').write_text(json.dumps(dict(campaign=self.name, case=case, outcome=outcome), indent=1))
        if trace: (kept/'trace.txt').write_text(trace)
        for p in self.folder.glob('said*.txt'): shutil.copy(p, kept)
        here = self.folder/'case'
        size = sum(p.lstat().st_size for p in here.rglob('*') if p.is_file()) if here.exists() else 0
        if here.exists() and size < KEPT and sum(1 for _ in here.rglob('*')) < 2000:
            shutil.copytree(here, kept/'case', symlinks=True, ignore_dangling_symlinks=True)

def commit():
    def git(*words):
        return subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True).stdout.strip()
    return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain') else '')

def table(runs, facts):
    "The result as Markdown"
    about = campaigns()
    lines = [
        f"{facts['date']}, commit {facts['commit']}, seed {facts['seed']}, {facts['minutes']:.0f} minutes on {facts['cores']} cores",
        '',
        '| campaign | cases | ok | failures by class | what it tries |',
        '|---|---|---|---|---|',
    ]
    for c in runs:
        bad = ', '.join(f'{k}: {n}' for k,n in sorted(c.counts.items()) if k != 'ok') or '–'
        lines.append(f'| {c.name} | {sum(c.counts.values())} | {c.counts["ok"]} | {bad} | {about[c.name]} |')
    total, ok = sum(sum(c.counts.values()) for c in runs), sum(c.counts['ok'] for c in runs)
    return '\n'.join([*lines, f'| **all** | {total} | {ok} | {total-ok or "–"} | |'])+'\n'

def report(runs, facts, out):
    out.mkdir(parents=True, exist_ok=True)
    (out/'last.md').write_text(table(runs, facts))
    rows = [dict(campaign=c.name, cases=sum(c.counts.values()), counts=dict(c.counts), seconds=round(c.seconds),
        failures=c.failures) for c in runs]
    (out/'last.json').write_text(json.dumps(facts | dict(campaigns=rows), indent=1)+'\n')

def torture(names, minutes, seed, jobs, out, slice_s=60.):
    "Run campaigns; the number of failed cases"
    start = time.monotonic()
    facts = dict(date=time.strftime('%Y-%m-%d'), commit=commit(), seed=seed, minutes=minutes,
        cores=len(os.sched_getaffinity(0)))
    print(f'seed {seed}: {", ".join(names)}', flush=True)
    shutil.rmtree(out/'failures', ignore_errors=True)
    repo = snapshot(out)
    with tempfile.TemporaryDirectory(prefix='steve1-torture-', ignore_cleanup_errors=True) as work:
        runs = [Campaign(n, seed, Path(work), out, repo) for n in names]
        until = start+60*minutes
        left = lambda: until-time.monotonic()
        def one(c): # in turn; at least one case each
            if c.finished or left() <= 0 and c.counts: return
            mine = left()*jobs/max(1, sum(not r.finished for r in runs))
            c.slice(max(.01, min(slice_s, mine)))
        try:
            with ThreadPoolExecutor(jobs) as pool:
                while any(not c.finished for c in runs) and (left() > 0 or not all(c.counts or c.finished
                    for c in runs)):
                    list(pool.map(one, runs))
                    report(runs, facts, out)
        except KeyboardInterrupt: print('stopped; the table so far:', flush=True)
        finally:
            for c in runs: c.end()
    report(runs, facts, out)
    print(table(runs, facts))
    return sum(len(c.failures) for c in runs), sum(sum(c.counts.values()) for c in runs)

def publish(out):
    "The last table without details, for the page on reliability"
    last = json.loads((out/'last.json').read_text())
    for c in last['campaigns']: del c['failures']
    (HERE/'last.json').write_text(json.dumps(last, indent=1)+'\n')
    return 0

def repeat(file):
    "Run the case of a failure again"
    what = json.loads(Path(file).read_text())
    with tempfile.TemporaryDirectory(prefix='steve1-torture-', ignore_cleanup_errors=True) as work:
        os.environ.update(TMPDIR=str(work), STEVE1_DATA=str(Path(work)/'data'), OMP_NUM_THREADS='1')
        tempfile.tempdir = None
        harness.adopt_orphans()
        harness.set_folders(work, Path(work)/'case')
        outcome, trace = try_case(importlib.import_module(what['campaign']), what['case'])
        print(trace or '', outcome, sep='\n')
        harness.outliving(0) # a server that the cases share
        for p in sorted(Path(work).glob('said*.txt')): print(f'--- {p.name}\n{p.read_text(errors="replace")[-3000:]}')
    return outcome != 'ok'

def main(argv=None):
    about = campaigns()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('campaigns', nargs='*', metavar='CAMPAIGN', help=f'of {", ".join(about)}; default: all')
    p.add_argument('--minutes', type=float, default=60., help='for all campaigns together; each does at least one '
        'case (default 60)')
    p.add_argument('--seed', type=int, default=None, help='of the cases; default: another each time, printed')
    p.add_argument('--jobs', type=int, default=2, help='campaigns at a time (default 2)')
    p.add_argument('--out', type=Path, default=ROOT/'data'/'torture', help='where tables and failures go (default '
        'data/torture)')
    p.add_argument('--repeat', metavar='FILE', help='case.json of a failure')
    p.add_argument('--publish', action='store_true', help='store the last table for the page on reliability '
        '(tests/campaigns/last.json)')
    p.add_argument('--list', action='store_true', help='list the campaigns')
    args = p.parse_args(argv)
    if args.list:
        print('\n'.join(f'{k:18}{v}' for k,v in about.items()))
        return 0
    if args.repeat: return repeat(args.repeat)
    if args.publish: return publish(args.out)
    if unknown := [n for n in args.campaigns if n not in about]:
        p.error(f'no campaign {unknown[0]}: {", ".join(about)}')
    if args.minutes <= 0 or args.jobs < 1: p.error('--minutes must be positive and --jobs at least 1')
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    failed, tried = torture(args.campaigns or list(about), args.minutes, seed, args.jobs, args.out)
    return failed > 0 or tried == 0

if __name__ == '__main__':
    if sys.argv[1:2] == ['--worker']: worker(*sys.argv[2:])
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)    # ends its workers, too
        sys.exit(main())
