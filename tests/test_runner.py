"The runner itself: a failing, a hanging and a dying notebook each cost one failure and no more"
import json, sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parent))
import run_all

def notebook(folder, code):
    path = folder/'some.ipynb'
    cell = dict(cell_type='code', id='a', metadata={}, source=code, outputs=[], execution_count=None)
    path.write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=dict(name='python3', language='python',
        display_name='python3')), nbformat=4, nbformat_minor=5)))
    return path

@pytest.mark.parametrize('code,ok,says', [
    ('assert 1+1 == 2', 1, ''),
    ('assert 1+1 == 3', 0, 'some.ipynb'),
    ('import time; time.sleep(100)', 0, 'stopped after'),
    ('import os; os._exit(0)', 0, ''),            # died with a good face
    ('import os; assert os.environ["IN_TEST"] == "1" and os.environ["OMP_NUM_THREADS"] == "1"', 1, ''),
])
def test_notebook_outcomes(tmp_path, code, ok, says):
    passed, failed, text, secs = run_all.run_notebook(notebook(tmp_path, code), limit=4 if 'sleep' in code else 60)
    assert (passed, failed) == (ok, 1-ok)
    assert says in text

def test_a_missing_notebook_fails(tmp_path):
    assert run_all.run_notebook(tmp_path/'none.ipynb')[:2] == (0, 1)

def test_pytest_is_counted(tmp_path):
    (tmp_path/'test_x.py').write_text('def test_a(): pass\ndef test_b(): assert 0\n')
    assert run_all.run_pytest(tmp_path)[:2] == (1, 1)
    (tmp_path/'test_x.py').write_text('import nothing_of_that_name\n')
    assert run_all.run_pytest(tmp_path)[:2] == (0, 1)
    (tmp_path/'test_x.py').write_text('')
    assert run_all.run_pytest(tmp_path)[:2] == (0, 1) # no tests at all
