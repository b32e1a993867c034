"A papermill that is stopped takes its kernel along, and a launch ends with its kernel (test_train)"
import os, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pytest

def alive(pid):
    stat = Path(f'/proc/{pid}/stat')
    return stat.exists() and stat.read_text().rsplit(')', 1)[1].split()[0] != 'Z'

@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs /proc')
def test_a_stopped_papermill_ends_its_kernel(tmp_path):
    "SIGTERM, as a cluster or `kill` sends it, in the middle of a cell"
    cell = "import os, time; open('pid.part', 'w').write(str(os.getpid())); os.rename('pid.part', 'pid'); time.sleep(300)"
    kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel), tmp_path/'in.ipynb')
    command = [sys.executable, '-m', 'papermill', 'in.ipynb', 'out.ipynb', '--no-progress-bar', '--log-level', 'ERROR']
    p = subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ, JUPYTER_PREFER_ENV_PATH='1'), stderr=subprocess.DEVNULL, start_new_session=True)
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
