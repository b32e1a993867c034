"Recordings from outside at process level: long ones in little memory, killed conversions, the commands"
import json, os, random, signal, subprocess, sys, time
import av, cv2, numpy as np, pytest
from steve1.config import repo_root
from steve1.episodes import Episode, list_episodes, validate_episode
from steve1.base.video import VideoWriter

ENV = dict(os.environ, PYTHONPATH=os.pathsep.join([str(repo_root()), os.environ.get('PYTHONPATH', '')]),
    OMP_NUM_THREADS='1')
MB = 2**20

def write(folder, n, size=(72,128), fps=20, seed=0):
    "A recording of n frames of slowly changing noise, with a key always down"
    folder.mkdir(parents=True)
    rng, video = np.random.default_rng(seed), VideoWriter(folder/'video.mp4', size, fps)
    for a in range(0, n, 40):
        video.add(np.broadcast_to(cv2.resize(rng.integers(0, 255, (6,8,3), dtype=np.uint8), size[::-1]),
            (min(40, n-a),*size,3)))
    video.close()
    (folder/'actions.jsonl').write_text('{"forward": 1, "camera": [0.5, -1.25]}\n'*n)
    return folder

def run(code, **kw):
    return subprocess.run([sys.executable, '-c', code], env=ENV, capture_output=True, text=True, timeout=120, **kw)

def test_memory_is_flat(tmp_path):
    "Ten times the length, hardly any more memory: 2,400 frames of 360×640 would be 1.7 GB"
    peak = {}
    for n in (240, 2400):
        src = write(tmp_path/f'r{n}', n, (360,640))
        r = run(
            f"import resource; from steve1.data.recordings import convert_recording; "
            f"convert_recording({str(src)!r}, {str(tmp_path/f'e{n}')!r}); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024)"
        )
        assert r.returncode == 0, r.stderr
        peak[n] = int(r.stdout)/MB
        assert Episode(tmp_path/f'e{n}').n == n
    assert peak[2400]-peak[240] < 60, peak

def test_killed_conversion_resumes(tmp_path):
    "Killed at random moments it never shows part of an episode, and ends up as if undisturbed"
    for i in range(8): write(tmp_path/'in'/f'r{i}', 200, seed=i)
    code = "from steve1.data.importing import convert_recordings\nif __name__ == '__main__': convert_recordings([{0!r}], {1!r}, workers={2})"
    script, rng, out = tmp_path/'run.py', random.Random(0), tmp_path/'out'
    script.write_text(code.format(str(tmp_path/'in'), str(out), 2))
    start = lambda: subprocess.Popen([sys.executable, str(script)], env=ENV, stderr=subprocess.DEVNULL)
    for k in range(3):
        p, end = start(), time.monotonic()+40
        while len(list(out.glob('r*'))) <= 2*k and p.poll() is None and time.monotonic() < end: time.sleep(.005)
        time.sleep(rng.uniform(0, .1))
        p.send_signal(signal.SIGKILL); p.wait()
        for e in out.glob('r*/'): validate_episode(e)
    assert start().wait(timeout=60) == 0
    assert run(code.format(str(tmp_path/'in'), str(tmp_path/'whole'), 0)).returncode == 0
    a, b = list_episodes(out), list_episodes(tmp_path/'whole')
    assert [p.name for p in a] == [p.name for p in b] == [f'r{i}' for i in range(8)]
    for x,y in zip(a, b): assert validate_episode(x).meta == validate_episode(y).meta
    assert not list(out.glob('.tmp-*')) and len((out/'recordings.jsonl').read_text().splitlines()) == 8

def test_video_cut_short(tmp_path):
    "A file whose index promises more than it holds is set aside, wherever it ends"
    from steve1.data.contractor import RecordingError
    from steve1.data.recordings import convert_recording
    src = write(tmp_path/'r', 200, (36,64))
    # index first: a cut file still opens
    with av.open(str(src/'video.mp4')) as old, av.open(str(tmp_path/'fast.mp4'), 'w',
        options=dict(movflags='faststart')) as new:
        s = new.add_stream_from_template(old.streams.video[0])
        for p in old.demux(video=0):
            if p.dts is not None: p.stream = s; new.mux(p)
    whole = (tmp_path/'fast.mp4').read_bytes()
    for share in (.5, .7, .9, .99):
        (src/'video.mp4').write_bytes(whole[:int(len(whole)*share)])
        with pytest.raises(RecordingError): convert_recording(src, tmp_path/'e')
    (src/'video.mp4').write_bytes(whole)
    assert Episode(convert_recording(src, tmp_path/'e')).n == 200
    rng = random.Random(1)
    for k in range(12): # damage anywhere: an error of ours, or an episode that is whole
        bad = bytearray(whole)
        for _ in range(20): bad[rng.randrange(len(bad))] = rng.randrange(256)
        (src/'video.mp4').write_bytes(bad)
        try: validate_episode(convert_recording(src, tmp_path/f'e{k}'))
        except RecordingError: assert not (tmp_path/f'e{k}').exists()

def test_command(tmp_path):
    "One good, one broken: the good one is made, the other is named, and the status says so"
    write(tmp_path/'in'/'good', 60); write(tmp_path/'in'/'bad', 60)
    (tmp_path/'in'/'bad'/'actions.jsonl').write_text('{"camera": [0, 1]}\n'*10 + '{"camera": [0, 1}\n')
    (tmp_path/'main.py').write_text('from steve1.data.importing import recordings_cli\nif __name__ == "__main__": '
        'recordings_cli()\n')
    cmd = lambda *a: subprocess.run([sys.executable, str(tmp_path/'main.py'), str(tmp_path/'in'), '--out',
        str(tmp_path/'out'), *a], env=ENV, capture_output=True, text=True, timeout=120)
    r = cmd('--dry_run', '--size', '64')
    assert r.returncode == 1 and 'bad: actions.jsonl, line 11' in r.stdout and not (tmp_path/'out').exists(), r
    r = cmd('--size', '36x64')
    assert r.returncode == 1 and 'set aside' in r.stdout and 'made' in r.stdout, r
    assert validate_episode(tmp_path/'out'/'good').size == (36,64)
    r = cmd('--size', '128')
    assert r.returncode and 'another name' in r.stderr, r
    r = cmd('--size', 'big')
    assert r.returncode and '160x256' in r.stderr and 'Traceback' not in r.stderr, r
    assert '--action_fps' in cmd('--help').stdout

COMMAND = "from steve1.data.importing import recordings_cli\nif __name__ == '__main__': recordings_cli()\n"
def test_blank_lines_at_the_end(tmp_path):
    "Blank lines at the end are no lines, for plain actions and for a contractor's"
    from steve1.data.contractor import RecordingError, _read_steps
    from steve1.data.tracks import ActionLines
    step = json.dumps(dict(mouse=dict(dx=1, dy=0, buttons=[], newButtons=[]), keyboard=dict(keys=[]), isGuiOpen=False))
    for line,read in (('{"camera": [1.0, 0.0]}', lambda p: ActionLines.read(p).rows),
        (step, lambda p: ActionLines.read(p).rows), (step, lambda p: list(_read_steps(p)))):
        for end in ('', '\n', '\n\n', '\r\n \n\t\n\n'):
            (tmp_path/'actions.jsonl').write_text('\n'.join([line]*3)+end)
            assert len(read(tmp_path/'actions.jsonl')) == 3
        (tmp_path/'actions.jsonl').write_text(f'{line}\n\n{line}\n')
        with pytest.raises(RecordingError, match='line 2: blank'): read(tmp_path/'actions.jsonl')

def test_a_matroska_cut_short(tmp_path):
    "A .mkv states its length in seconds alone; half of one is not taken for a whole one"
    from steve1.data.contractor import RecordingError
    from steve1.data.tracks import Recording
    src = write(tmp_path/'r', 200)
    with av.open(str(src/'video.mp4')) as old, av.open(str(src/'video.mkv'), 'w') as new:
        s = new.add_stream_from_template(old.streams.video[0])
        for p in old.demux(video=0):
            if p.dts is not None: p.stream = s; new.mux(p)
    (src/'video.mp4').unlink()
    assert Recording(src).n == 200
    whole = (src/'video.mkv').read_bytes()
    for share in (.3, .5, .8):
        (src/'video.mkv').write_bytes(whole[:int(len(whole)*share)])
        with pytest.raises(RecordingError, match='video.mkv: '): Recording(src)

def test_a_turned_video(tmp_path):
    "A phone's video that players turn is refused with the way out"
    from steve1.data.contractor import RecordingError
    from steve1.data.tracks import Recording
    src = write(tmp_path/'r', 20)
    data = bytearray((src/'video.mp4').read_bytes())
    at = data.index(b'tkhd')+4+20+16+4*(0)
    matrix = data.index((1<<16).to_bytes(4, 'big')+b'\0'*12+(1<<16).to_bytes(4, 'big')+b'\0'*12+(1<<30).to_bytes(4,
        'big'), at)
    data[matrix:matrix+36] = b''.join(v.to_bytes(4, 'big', signed=True) for v in (0, 1<<16, 0, -1<<16, 0, 0, 0, 0,
        1<<30))
    (src/'video.mp4').write_bytes(data)
    with pytest.raises(RecordingError, match='video.mp4: frame 0 .*write it upright'): list(Recording(src).frames())

def test_interrupted(tmp_path):
    "Ctrl-C in a conversion: one line, status 130, and no part of an episode"
    for i in range(6): write(tmp_path/'in'/f'r{i}', 600, (360,640), seed=i)
    (tmp_path/'steve1_recordings').write_text(COMMAND)
    p = subprocess.Popen([sys.executable, str(tmp_path/'steve1_recordings'), str(tmp_path/'in'), '--out',
        str(tmp_path/'out')], env=ENV, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True)
    end = time.monotonic()+60
    while not list(tmp_path.glob('out/.tmp-*')) and time.monotonic() < end: time.sleep(.05)
    os.killpg(p.pid, signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert (
        p.returncode == 130
        and 'Traceback' not in err
        and err.splitlines()[-1].startswith('steve1_recordings: stopped')
    ), err
    for e in list_episodes(tmp_path/'out') if list(tmp_path.glob('out/r*')) else (): validate_episode(e)
