"A papermill that is stopped takes its kernel along, and a run that exists is kept; a launch ends with its kernel (test_train_processes)"
import os, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
from papermill import inspect_notebook
from steve1.config import data_dir, repo_root
from steve1.train import train
from train_runs import TINY, data
sys.path.insert(0, str(repo_root()/'tools'))
from repo import notebooks

def alive(pid):
    stat = Path(f'/proc/{pid}/stat')
    return stat.exists() and stat.read_text().rsplit(')', 1)[1].split()[0] != 'Z'

@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs /proc')
def test_a_stopped_papermill_ends_its_kernel(tmp_path):
    "SIGTERM, as a cluster or `kill` sends it, in the middle of a cell"
    cell = "import os, time; open('pid.part', 'w').write(str(os.getpid())); os.rename('pid.part', 'pid'); time.sleep(300)"
    kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel),
        tmp_path/'in.ipynb')
    command = [sys.executable, '-m', 'papermill', 'in.ipynb', 'out.ipynb', '--no-progress-bar', '--log-level', 'ERROR']
    p = subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ, JUPYTER_PREFER_ENV_PATH='1'),
        stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic()+60
    while not (tmp_path/'pid').exists() and p.poll() is None and time.monotonic() < end: time.sleep(.1)
    pid = int((tmp_path/'pid').read_text())
    try:
        p.send_signal(signal.SIGTERM); p.wait(30)
        end = time.monotonic()+30
        while alive(pid) and time.monotonic() < end: time.sleep(.1)
        assert not alive(pid), 'the kernel goes on without its papermill'
    finally:
        for q in (p.pid, pid):
            if alive(q): os.kill(q, signal.SIGKILL)

def test_papermill_reads_every_parameter(caplog):
    "Each line of a parameters cell, its comment included: papermill warns of one that it cannot read"
    for path in notebooks():
        inspect_notebook(str(path))
        assert not caplog.messages, (path, caplog.messages)

@pytest.mark.skipif(os.name != 'posix', reason='needs a terminal of the kind that Linux and macOS have')
def test_as_typed_in_a_terminal(tmp_path):
    "`papermill 05_train.ipynb -p lr 1e-5`: papermill itself would ask for the name of the executed copy"
    import pty
    ours, theirs = pty.openpty()
    program = Path(sys.executable).with_name('papermill')
    p = subprocess.Popen([program, '05_train.ipynb', '-p', 'lr', '1e-5', '--prepare-only'], cwd=repo_root()/'nbs',
        env=os.environ | dict(STEVE1_DATA=str(tmp_path)), stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    said = p.communicate(timeout=120)[1].decode()
    os.close(ours)
    copy = tmp_path/'runs'/'05_train.ipynb'
    assert p.returncode == 0 and str(copy) in said, said
    assert any('lr = 1e-05' in c.source for c in nbformat.read(copy, 4).cells)

def test_a_name_that_exists_is_kept(data):
    "Training by papermill under the name of a run with other settings is refused, and that run's files stay as they are"
    train(TINY.replace(name='there', n_frames=4*64))
    folder = data_dir('runs', 'there')
    files = lambda: {p:p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}
    before = files()
    given = dict(preset='tiny', init='', sampling='tiny', name='there', lr='3e-5', n_frames=4*64, procs=1)
    words = [str(w) for k,v in given.items() for w in ('-p', k, v)]
    env = {k:v for k,v in os.environ.items() if k != 'IN_TEST'} | dict(JUPYTER_PREFER_ENV_PATH='1')
    p = subprocess.run([sys.executable, '-m', 'papermill', '05_train.ipynb', str(data/'out.ipynb'),
        '--no-progress-bar', '--log-level', 'ERROR', *words], cwd=repo_root()/'nbs', env=env, capture_output=True,
        text=True)
    assert p.returncode and "'there' exists with other settings: lr was" in p.stderr, p.stderr[-1000:]
    after = files()
    assert {k:after.get(k) for k in before} == before
    assert {q.name for q in after.keys()-before.keys()} <= {'launch.log', 'launch.yaml'}
