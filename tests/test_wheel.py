"What `pip install` gives plays: the wheel in an environment of its own, on an empty folder, without a clone"
import os, subprocess, sys, sysconfig, zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent

def run(*cmd, **kw):
    r = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, **kw)
    assert r.returncode == 0, f'{cmd}:\n{r.stdout[-3000:]}\n{r.stderr[-3000:]}'
    return r

def wheel_of(source, out):
    "The wheel that a source tree (or sdist) builds, without a network"
    run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-q', '-w', out, source)
    return next(Path(out).glob('steve1-*.whl'))

@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    "The tracked files of this tree, so that what is made here does not get into a package"
    tree = tmp_path_factory.mktemp('tree')
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True,
        text=True).stdout.split('\0')
    for f in filter(None, files):
        if not (ROOT/f).is_file() or f.startswith(('nbs/', 'tests/')): continue
        (tree/f).parent.mkdir(parents=True, exist_ok=True)
        (tree/f).write_bytes((ROOT/f).read_bytes())
    return tree

@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory): return wheel_of(sources, tmp_path_factory.mktemp('wheel'))

@pytest.fixture(scope='module')
def env(wheel, tmp_path_factory):
    "An environment that has the wheel, and this one's packages but not its steve1"
    venv = tmp_path_factory.mktemp('env')
    run(sys.executable, '-m', 'venv', '--without-pip', venv)
    site = Path(run(venv/'bin'/'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').stdout.strip())
    # .pth files there are not followed: no editable steve1
    (site/'packages_of_the_test.pth').write_text(sysconfig.get_path('purelib')+'\n')
    run(sys.executable, '-m', 'pip', '--python', venv/'bin'/'python', 'install', '-q', '--no-deps', '--no-index',
        '--force-reinstall', wheel)
    return venv, site

def names(path): return {n for n in zipfile.ZipFile(path).namelist() if not n.endswith('RECORD')}

def test_what_ships_is_in_the_wheel(wheel):
    inside = names(wheel)
    tracked = subprocess.run(['git', 'ls-files', 'data'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert {f'steve1/shipped/{t.removeprefix("data/")}' for t in tracked} <= inside
    assert {f'steve1/{n}' for n in ('py.typed', 'world/worker.py', 'luanti/clock.c', 'world/walk.c', 'luanti/agent/init.lua',
        'luanti/agent/mod.conf')} <= inside
    assert not [n for n in inside if n.startswith('steve1/shipped') and any(d in n for d in ('/runs/', '/cache/',
        '/datasets/', '/published/'))]

def test_sdist_builds_the_same_wheel(sources, wheel, tmp_path):
    run(sys.executable, '-c', 'import setuptools.build_meta as b; b.build_sdist("dist")', cwd=sources)
    again = wheel_of(next((sources/'dist').glob('steve1-*.tar.gz')), tmp_path)
    assert names(again) == names(wheel)

def test_three_commands_on_an_empty_folder(env, tmp_path):
    venv, site = env
    home, work = tmp_path/'home', tmp_path/'work with a space'
    home.mkdir(); work.mkdir()
    before = {p for p in site.rglob('*') if '__pycache__' not in p.parts}
    clean = {k:v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'STEVE1_DATA', 'NUMBA_CACHE_DIR',
        'IN_TEST', 'XDG_DATA_HOME')}
    clean |= dict(HOME=str(home), OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    def command(name, *args): return run(venv/'bin'/name, *args, cwd=work, env=clean)
    verified = command('steve1_verify').stdout
    command('steve1_rollout', 'chop a tree', '--n_steps', 20, '--height', 90, '--name', 'try')
    command('steve1_train', '--preset', 'finetune', '--n_frames', 2048, '--batch', 4, '--val_lanes', 2,
        '--val_batches', 1, '--name', 'try_train')
    data = home/'.local'/'share'/'steve1'
    assert (
        list((data / 'runs' / 'try').glob('*.mp4')) and (data / 'runs' / 'try_train' / 'latest.safetensors').is_file()
    ), verified
    assert not list(work.iterdir())
    outside = [p for p in home.rglob('*') if p.is_file() and not p.is_relative_to(data)]
    assert not outside, outside
    assert {p for p in site.rglob('*') if '__pycache__' not in p.parts} == before
