"Names and files that lead elsewhere: refused by every setting that takes a name, replaced or refused where a link stands"
import os, subprocess, sys
import numpy as np
import pytest
from steve1.base.files import atomic_path
from steve1.base.remote import EpisodeFolder
from steve1.base.video import EpisodeError
from steve1.config import repo_root

BAD = '', '.', './', '..', '../x', '/tmp/x', 'a/../../x', '.git'

@pytest.mark.parametrize('name', BAD)
def test_names_of_runs(name):
    "A run's name is a folder below data/runs: training, rollouts and evaluation"
    from steve1.evaluate import EvalConfig
    from steve1.rollout import RolloutConfig
    from steve1.train import TrainConfig
    for cls in (TrainConfig, RolloutConfig, EvalConfig):
        with pytest.raises(ValueError, match='must be a folder below data/runs'): cls(name=name)

@pytest.mark.parametrize('name', ['', '.', '..', '.git'])
def test_names_of_datasets_and_samplings(name, tmp_path, monkeypatch):
    "So is a dataset's and a sampling's"
    monkeypatch.setenv('STEVE1_DATA', str(tmp_path))
    from steve1.data.sampling import make_sampling
    from steve1.episodes import dataset_dir
    with pytest.raises(ValueError, match='must be a folder below data/datasets'): dataset_dir(name)
    with pytest.raises(ValueError, match='must be a folder below data/samplings'): make_sampling(name, ['x'])

def test_what_ships_is_found_elsewhere(tmp_path):
    "With STEVE1_DATA at an empty folder, relative to where the command is typed: weights, sampling, episodes and seeds are found"
    code = """import os
from steve1.config import data_dir
from steve1.acting.goals import System
from steve1.data.sampling import read_sampling
from steve1.episodes import Episode, list_episodes
from steve1.evaluate import read_seeds
System.load(); os.chdir('/'); print(data_dir(), sum(map(len, read_sampling('sample'))), len(list_episodes('sample')), len(read_seeds(3)))"""
    env = dict(os.environ, STEVE1_DATA='elsewhere', PYTHONPATH=str(repo_root()), OMP_NUM_THREADS='1')
    run = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == [str(tmp_path.resolve()/'elsewhere'), '8', '8', '3'], run.stdout + run.stderr

def test_an_archive_named_like_an_array(tmp_path):
    "An .npz under the name of a table of embeddings"
    with open(tmp_path/'embeds.npy', 'wb') as f: np.savez(f, a=np.zeros(3))
    with pytest.raises(EpisodeError, match='embeds.npy is an archive of arrays'):
        EpisodeFolder(tmp_path).table('embeds.npy')

def test_left_by_a_killed_run(tmp_path):
    "What a killed process was writing goes with the next write into that folder, and nothing else does"
    code = f"import os, signal\nfrom steve1.base.files import atomic_path\nwith atomic_path({str(tmp_path/'x.bin')!r}) as p: p.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(repo_root())))
    assert len(list(tmp_path.glob('.tmp-*'))) == 1
    (tmp_path/'.tmp-x.bin.part').write_bytes(b'a download')
    with atomic_path(tmp_path/'y.bin') as p: p.write_bytes(b'whole')
    assert sorted(q.name for q in tmp_path.iterdir()) == ['.tmp-x.bin.part', 'y.bin']
