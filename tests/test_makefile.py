"What `make` would run: paths relative, whole, from home, with spaces"
import os, shlex, shutil, subprocess
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not shutil.which('make'), reason='no make here')

def plan(target, **settings):
    "The words of each command that a target would run, and the environment it exports"
    words = ['make', '-n', '--no-print-directory', '-C', str(ROOT), '-o',
        f"{settings.get('VENV', '.venv')}/.ready", target, *(f'{k}={v}' for k,v in settings.items())]
    env = {k:v for k,v in os.environ.items() if k not in ('STEVE1_DATA', 'MAKEFLAGS', 'VENV')}
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout
    return [shlex.split(line) for line in text.splitlines()]

@pytest.mark.parametrize('given,whole', [('rel', f'{ROOT}/rel'), ('/tmp/data', '/tmp/data'),
    ('/tmp/my data', '/tmp/my data'),
    ('my data', f'{ROOT}/my data'), ('~/steve', f'{Path.home()}/steve'), ('', f'{ROOT}/data')])
@pytest.mark.parametrize('target', ['demo', 'mini', 'small', 'luanti'])
def test_data_folder(given, whole, target):
    "All output goes to one folder: the notebook's copy, the films, the weights"
    lines = plan(target, STEVE1_DATA=given)
    assert lines[0] == ['mkdir', '-p', f'{whole}/runs/{target}']
    copies = [w for words in lines for w in words if w.endswith('.ipynb') and not w.startswith('nbs/')]
    assert copies and all(c.startswith(f'{whole}/runs/{target}/') for c in copies)

def test_two_sizes_of_one_recipe():
    "`make mini` and `make small` differ in names and numbers, and a number that is given counts for both"
    generate = lambda *a, **kw: next(w for w in plan(*a, **kw) if 'steve1_generate' in w)[-2:]
    assert [generate('mini'), generate('small')] == [['mini','400'], ['small','1600']]
    assert generate('small', EPISODES=7) == ['small','7']
    mini, small = ([' '.join(w).replace(target, 'SIZE') for w in plan(target)] for target in ('mini', 'small'))
    assert len(mini) == len(small) and sum(a != b for a,b in zip(mini, small)) < len(mini)

@pytest.mark.parametrize('given,whole', [('.venv', f'{ROOT}/.venv'), ('/opt/v', '/opt/v'), ('env', f'{ROOT}/env')])
def test_environment(given, whole):
    "The interpreter and the commands come from the same environment, wherever it lies"
    lines = plan('export', VENV=given)
    assert lines[0][0].split('=')[1].split(':')[0] == f'{whole}/bin'
    assert lines[-1][0] == f'{whole}/bin/python'

@pytest.mark.parametrize('argument', [True, False])
def test_exported_data_root(argument, tmp_path):
    "A relative folder, as `make demo STEVE1_DATA=…` or from the environment: what notebooks see, in nbs/, is what the Makefile writes to"
    (venv := tmp_path/'venv'/'bin').mkdir(parents=True)
    for name in ('papermill', 'jupyter', 'python'):
        (venv/name).write_text(f'#!/bin/sh\nprintenv STEVE1_DATA >>{tmp_path}/said\n')
        (venv/name).chmod(0o755)
    given = f'STEVE1_DATA={os.path.relpath(tmp_path/"my data", ROOT)}'
    env = {k:v for k,v in os.environ.items() if k not in ('STEVE1_DATA', 'MAKEFLAGS', 'VENV')}
    for target in ('demo', 'lab', 'test'):
        words = ['make', '-s', '-C', str(ROOT), '-o', f'{venv.parent}/.ready', target, f'VENV={venv.parent}',
            *([given] if argument else [])]
        subprocess.run(words, check=True, capture_output=True, env=env if argument else env|dict([given.split('=', 1)]))
    said = (tmp_path/'said').read_text().splitlines()
    assert len(said) == 3 and {os.path.realpath(s) for s in said} == {os.path.realpath(tmp_path/'my data')}, said
    assert all(os.path.isabs(s) for s in said)
