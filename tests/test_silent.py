"A silent video of any length is labelled in the same memory, by the command, in a process of its own"
import os, subprocess, sys
import numpy as np
from steve1.config import data_dir, repo_root
from steve1.episodes import Episode, validate_episode
from steve1.base.video import VideoWriter

LABEL = """
import resource, sys
from steve1.data.recordings import RecordingConfig, convert_recording
video, out, idm = sys.argv[1:]
convert_recording(video, out, RecordingConfig(size=(64,64), keep_null=True), idm=idm)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)
"""

def peak(folder, n):
    "Megabytes at most while a video of n frames is labelled"
    ep = Episode(data_dir('episodes', 'sample', '500000'))
    frames, w = ep.frames(0, 300), VideoWriter(folder/f'long_{n}.mp4', ep.size)
    for i in range(n//300): w.add(frames[::1 if i%2 == 0 else -1])
    w.close()
    run = subprocess.run([sys.executable, '-c', LABEL, str(folder/f'long_{n}.mp4'), str(folder/f'out_{n}'),
        str(data_dir('weights', 'idm.safetensors'))], capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=str(repo_root())))
    assert run.returncode == 0, run.stderr[-2000:]
    return int(run.stdout)

def test_memory_is_flat(tmp_path):
    few, many = peak(tmp_path, 300), peak(tmp_path, 3000)
    out = validate_episode(tmp_path/'out_3000')
    assert out.n == 3000 and len(np.load(out.path/'confidence.npy')) == 3000
    # the frames alone would be 33 MB more, latents and windows of all of them hundreds
    assert many < few + 20, f'{few} MB for 300 frames, {many} MB for 3,000'

def test_command(tmp_path):
    peak(tmp_path, 300)
    (tmp_path/'steve1_recordings').write_text("from steve1.data.importing import recordings_cli\nif __name__ == "
        "'__main__': recordings_cli()\n")
    env = dict(os.environ, PYTHONPATH=str(repo_root()))
    run = lambda *more: subprocess.run([sys.executable, str(tmp_path/'steve1_recordings'),
        str(tmp_path/'long_300.mp4'), '--out', str(tmp_path/'made'), '--size', '64', *more],
        capture_output=True, text=True, env=env)
    bad = run()
    assert bad.returncode and 'a model that labels it' in bad.stderr
    good = run('--idm', str(data_dir('weights', 'idm.safetensors')), '--min_confidence', '.05')
    assert good.returncode == 0 and 'labelled' in good.stdout, good.stderr
    assert Episode(tmp_path/'made'/'long_300').meta['labelled_by']['min_confidence'] == .05
