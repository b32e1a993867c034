"""The runner of tests/campaigns: what it counts, what it keeps, how it ends; and a short slice of the campaigns themselves"""
import json, subprocess, sys
from pathlib import Path
import pytest

HERE = Path(__file__).resolve().parent/'campaigns'
sys.path.insert(0, str(HERE))
import run

TOY = '''"""A toy"""
import os, time, harness
LIMIT = .5
def cases(rng):
    for what in ('ok', 'differs: a', 'raise', 'die', 'ok', 'hang', 'ok'): yield dict(what=what, n=rng.randrange(100))
def run(case):
    (harness.case_folder()/'artefact').write_text('x')
    if case['what'] == 'raise': raise OSError('disk')
    if case['what'] == 'die': os.kill(os.getpid(), 9)
    if case['what'] == 'hang': time.sleep(60)
    return case['what']
'''

@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A folder of campaigns with one toy, as the runner sees it"
    for name in ('run.py', 'harness.py'):
        (tmp_path/name).write_text((HERE/name).read_text().replace('parents[1]', 'parent').replace('parents[2]',
            'parent'))
    (tmp_path/'toy.py').write_text(TOY)
    return tmp_path

def torture(folder, *words):
    return subprocess.run([sys.executable, folder/'run.py', '--minutes', '.03', '--seed', '5', '--out',
        folder/'out', *words], capture_output=True, text=True, timeout=60)

def test_runner_counts_every_kind_of_failure(toy):
    p = torture(toy)
    assert p.returncode == 1, p.stderr
    row, = json.loads((toy/'out'/'last.json').read_text())['campaigns']
    bad = {k:n for k,n in row['counts'].items() if k != 'ok'}
    assert bad.keys() >= {'differs', 'raised', 'crash'} and row['cases'] == sum(row['counts'].values()), row
    assert '| toy |' in p.stdout and 'seed 5' in p.stdout
    first = row['failures'][0]
    kept = toy/'out'/'failures'/first['kept']
    assert first['outcome'] == 'differs: a' and (kept/'case'/'artefact').exists()
    again = subprocess.run([sys.executable, toy/'run.py', '--repeat', kept/'case.json'], capture_output=True, text=True)
    assert again.returncode == 1 and 'differs: a' in again.stdout
    assert not subprocess.run([sys.executable, toy/'run.py', '--list'], capture_output=True, text=True).returncode

def test_runner_knows_its_campaigns():
    about = run.campaigns()
    assert 'listeners' in about and all(about.values())
    for name in about:
        text = (HERE/f'{name}.py').read_text()
        assert '\ndef cases(rng):' in text and '\ndef run(case):' in text, name

def test_a_seed_gives_the_same_cases():
    import itertools, listeners
    first = lambda: list(itertools.islice(listeners.cases(run.case_rng(3, 'listeners')), 8))
    assert first() == first() and json.loads(json.dumps(first())) == first()

linux = pytest.mark.skipif(sys.platform != 'linux', reason='campaigns read /proc')

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "As a campaign's worker has them"
    import os, tempfile, harness
    kept = {k:os.environ.get(k) for k in ('TMPDIR', 'STEVE1_DATA')}
    work = tmp_path_factory.mktemp('campaign')
    (work/'tmp').mkdir()
    os.environ['TMPDIR'], tempfile.tempdir = str(work/'tmp'), None
    harness.adopt_orphans()
    harness.set_folders(work, work/'case')
    yield work
    tempfile.tempdir = None
    for k,v in kept.items(): os.environ.pop(k, None) if v is None else os.environ.__setitem__(k, v)

def tried(name, cases):
    "Outcomes that are not ok"
    import importlib
    module = importlib.import_module(name)
    return [(c, out) for c in cases if (out := run.try_case(module, c))[0] != 'ok']

@linux
def test_slice_of_full_disks(folders):
    cases = [dict(writer=w, how=how, share=share) for w,how,share in (('episode', 'limit', .37), ('film', 'tmpfs', .6),
        ('sampling', 'limit', .5), ('ledger', 'limit', .37), ('policy', 'limit', .9), ('official', 'limit', .999),
        ('mapped', 'limit', .9), ('sheet', 'tmpfs', .6),
        ('episode', 'limit', 1.02), ('recordings', 'limit', 1.02))] # the last two have room enough
    assert not tried('disk_full', cases)

@linux
def test_slice_of_garbage(folders):
    import itertools, game_garbage
    assert not tried('game_garbage', itertools.islice(game_garbage.cases(run.case_rng(4, 'game_garbage')), 3))

def test_campaigns_import_what_is_there():
    "Most campaigns import within functions: a name that has moved would be found only when the campaign runs"
    import ast, importlib
    uses = {(p.name, n.module, a.name) for p in HERE.glob('*.py') for n in ast.walk(ast.parse(p.read_text()))
        if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('steve1') for a in n.names}
    assert uses and not [u for u in sorted(uses) if not hasattr(importlib.import_module(u[1]), u[2])]
