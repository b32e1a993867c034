"Videos from elsewhere: disguised, cut short, turned, damaged, in other colours; and disks that are full while one is written"
import gc, os, struct, subprocess, sys
from pathlib import Path
import av, cv2, numpy as np, pytest
from steve1.config import repo_root
from steve1.base.overlay import video_sheet
from steve1.base.video import (EpisodeError, VideoError, VideoReader, VideoWriter, open_video)
from steve1.episodes import Episode, toy_episode, validate_episode

def read_all(path): return [f.to_ndarray(format='rgb24') for f in VideoReader.all_frames(path)]

READERS = dict(open=open_video, count=VideoReader.count_frames, times=VideoReader.frame_times, frames=read_all,
    reader=lambda p: VideoReader(p).read(0, 40))

def pattern(i, size=(64,96)):
    "A frame that shows its number in bits"
    x = np.full((*size,3), 40, np.uint8)
    for b in range(8): x[:, b*12:(b+1)*12] = 220 if i>>b & 1 else 30
    return x

def write(path, n=40, codec='libx264', fmt='yuv420p', times=None, space=2, full=False):
    with av.open(str(path), 'w') as out:
        s = out.add_stream(codec, rate=20)
        s.height, s.width, s.pix_fmt = 64, 96, fmt
        s.codec_context.colorspace, s.codec_context.color_range = space, 2 if full else 1
        for i in range(n):
            f = av.VideoFrame.from_ndarray(pattern(i), format='rgb24').reformat(format=fmt,
                dst_colorspace=space if space in (1,5) else None, dst_color_range=2 if full else 1)
            f.pts = i if times is None else times[i]
            out.mux(s.encode(f))
        out.mux(s.encode())
    return path

def numbers(frames): return [sum(1<<b for b in range(8) if x[30, b*12+6].mean() > 128) for x in frames]

def find_box(data, names, start=0, end=None):
    end = len(data) if end is None else end
    while start < end:
        n, name = struct.unpack('>I4s', data[start:start+8])
        if name == names[0]: return (start, n) if len(names) == 1 else find_box(data, names[1:], start+8, start+n)
        start += n

def box(name, content): return struct.pack('>I4s', len(content)+8, name)+content

def add_cover(path):
    "A cover image in front of the tracks, as music players write it"
    jpg, data = cv2.imencode('.jpg', np.full((64,64,3), 128, np.uint8))[1].tobytes(), path.read_bytes()
    moov, size = find_box(data, [b'moov'])
    head, head_size = find_box(data, [b'moov', b'mvhd'])
    cover = box(b'ilst', box(b'covr', box(b'data', struct.pack('>II', 13, 0)+jpg)))
    meta = box(b'udta', box(b'meta', b'\0'*4+box(b'hdlr', b'\0'*8+b'mdirappl'+b'\0'*9)+cover))
    inside = data[moov+8:head+head_size]+meta+data[head+head_size:moov+size]
    path.write_bytes(data[:moov]+box(b'moov', inside)+data[moov+size:])

def turn(path):
    "Ask players to turn the video by 90 degrees, as phones do"
    data = bytearray(path.read_bytes())
    p, _ = find_box(data, [b'moov', b'trak', b'tkhd'])
    struct.pack_into('>9i', data, p+12+(20 if data[p+8] == 0 else 32)+16, 0, 1<<16, 0, -1<<16, 0, 0, 0, 0, 1<<30)
    path.write_bytes(data)

# --- what is opened

@pytest.mark.parametrize('read', READERS)
@pytest.mark.parametrize('text', ['ffconcat version 1.0\nfile secret.mp4\n',
    '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n'])
def test_a_list_of_files_is_no_video(tmp_path, read, text):
    "A text that FFmpeg would follow to other files is refused, whatever its name"
    write(tmp_path/'secret.mp4')
    for name in ('list.mp4', 'list.mkv'):
        (tmp_path/name).write_text(text)
        with pytest.raises((VideoError, EpisodeError), match=f'{name} is no readable video'):
            READERS[read](tmp_path/name)

@pytest.mark.parametrize('name', ['a b.mp4', 'concat:x.mp4', 'file:x.mp4', '%03d.mp4', 'ü.mp4'])
def test_a_path_is_never_an_address(tmp_path, monkeypatch, name):
    "Names that FFmpeg reads as protocols or patterns are plain files"
    write(tmp_path/'x.mp4').rename(tmp_path/name)
    monkeypatch.chdir(tmp_path)
    assert VideoReader.count_frames(name) == len(list(read_all(name))) == 40

def test_a_cover_is_not_the_video(tmp_path):
    add_cover(path := write(tmp_path/'a.mp4'))
    assert len(av.open(str(path)).streams.video) == 2
    assert VideoReader.count_frames(path) == len(VideoReader.frame_times(path).times) == 40
    assert numbers(read_all(path)) == numbers(VideoReader(path).read(0, 40)) == list(range(40))

@pytest.mark.parametrize('read', ['frames', 'reader'])
def test_a_turned_video_is_refused(tmp_path, read):
    turn(path := write(tmp_path/'a.mp4'))
    with pytest.raises((VideoError, EpisodeError), match='a.mp4.*turn it by.*write it upright'): READERS[read](path)

@pytest.mark.parametrize('space', [2, 1, 5])
@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('fmt', ['yuv420p', 'yuv444p'])
def test_colours_are_those_of_the_file(tmp_path, space, full, fmt):
    "Matrix (BT.709, BT.601, or unstated: BT.601) and range are taken from the file"
    rgb = np.zeros((64,96,3), np.uint8)
    rgb[:32,:48] = 200,30,40
    rgb[:32,48:] = 20,180,60
    rgb[32:,:48] = 30,50,210; rgb[32:,48:] = 240,240,20
    kr, kb = (.2126, .0722) if space == 1 else (.299, .114)
    r,g,b = np.moveaxis(rgb/255, -1, 0)
    y = kr*r + (1-kr-kb)*g + kb*b
    u, v = (b-y)/(2*(1-kb)), (r-y)/(2*(1-kr))
    planes = (255*y, 255*u+128, 255*v+128) if full else (16+219*y, 224*u+128, 224*v+128)
    with av.open(str(path := tmp_path/'c.mp4'), 'w') as out:
        s = out.add_stream('libx264', rate=20, options=dict(crf='0'))
        s.height, s.width, s.pix_fmt = 64, 96, fmt
        s.codec_context.colorspace, s.codec_context.color_range = space, 2 if full else 1
        f = av.VideoFrame(96, 64, fmt)
        f.colorspace, f.color_range, f.pts = space, 2 if full else 1, 0
        for p,a in zip(f.planes, planes):
            a = np.uint8(a.round().clip(0,255))
            np.frombuffer(p, np.uint8).reshape(p.height,-1)[:,:p.width] = a if p.height == 64 else a[::2,::2]
        out.mux(s.encode(f)); out.mux(s.encode())
    for x in (VideoReader(path).read(0, 1)[0], read_all(path)[0]):
        assert np.abs(x.astype(int)-rgb)[[12,12,50,50],[20,70,20,70]].max() <= 3

# --- what is cut short or damaged

@pytest.mark.parametrize('read', READERS)
@pytest.mark.parametrize('name', ['a.mp4', 'a.mov', 'a.avi'])
def test_a_file_without_its_index_is_cut_short(tmp_path, name, read):
    path = write(tmp_path/name, codec='mpeg4' if name == 'a.avi' else 'libx264')
    path.write_bytes(path.read_bytes()[:path.stat().st_size*2//3])
    if (name, read) == ('a.avi', 'open'): return # opens; its first pass says that it is cut short
    with pytest.raises((VideoError, EpisodeError), match=f'{name}.*(cut short|no readable video|cannot be '
        f'decoded)') as e:
        READERS[read](path)
    assert name == 'a.avi' or 'index is missing' in str(e.value)

@pytest.mark.parametrize('read', ['count', 'times', 'frames'])
@pytest.mark.parametrize('name', ['a.mkv', 'a.webm', 'fast.mp4'])
def test_half_a_file_is_not_a_shorter_video(tmp_path, name, read):
    "A recording of 10 s of which half is there never passes for one of 5 s"
    path = write(tmp_path/('a.mp4' if name == 'fast.mp4' else name), 200, 'libvpx' if name == 'a.webm' else 'libx264')
    if name == 'fast.mp4':
        with av.open(str(path)) as a, av.open(str(tmp_path/name), 'w', options=dict(movflags='faststart')) as b:
            s = b.add_stream_from_template(a.streams.video[0])
            for p in a.demux(video=0):
                if p.size: p.stream = s; b.mux(p)
        path = tmp_path/name
    READERS[read](path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size//2])
    with pytest.raises(VideoError, match=f'{name}(:| is cut short)'): READERS[read](path)

def test_damage_that_the_decoder_notices_is_not_passed_on(tmp_path):
    "Where FFmpeg conceals an error it marks the frame; such a frame is never handed out"
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (40,64,96,3), dtype=np.uint8)
    with VideoWriter(path := tmp_path/'a.mp4', (64,96)) as v: v.add(noise)
    VideoReader(path).read(0, 40)
    data = path.read_bytes()
    start, size = find_box(data, [b'mdat'])
    told = 0
    for i in range(6):
        at = start+size*(i+1)//8
        path.write_bytes(data[:at]+bytes(400)+data[at+400:])
        for read in (lambda: list(read_all(path)), lambda: VideoReader(path).read(0, 40)):
            try: read()
            except (VideoError, EpisodeError) as e:
                told += 1
                assert 'a.mp4' in str(e) and 'frame' in str(e)
    assert told >= 10

# codecs that predict nothing from other frames, and those that seal their frames with a checksum
SEALED = {'mjpeg':('a.mov','yuvj444p'), 'prores_ks':('a.mov','yuv422p10le'), 'ffv1':('a.mkv','yuv420p'),
    'png':('a.mov','rgb24')}

@pytest.mark.parametrize('codec', SEALED)
def test_damage_that_is_only_logged_is_an_error(tmp_path, codec):
    "MJPEG shows what it can decode, FFV1 the frame before, ProRes fails as if it had no permission"
    path = write(tmp_path/SEALED[codec][0], 24, codec, SEALED[codec][1])
    want, data, rng = list(range(24)), path.read_bytes(), np.random.default_rng(0)
    assert numbers(read_all(path)) == want
    refused = 0
    for i in range(30):
        bent, at = bytearray(data), int(rng.integers(len(data)//8, len(data)-200))
        bent[at:at+120] = rng.bytes(120) if i%2 else bytes(120)
        path.write_bytes(bent)
        try: assert numbers(read_all(path)) == want
        except (VideoError, EpisodeError) as e:
            refused += 1
            assert path.name in str(e)
    assert refused > 20

@pytest.mark.parametrize('read', READERS)
@pytest.mark.parametrize('fault', ['no box', 'no scale'])
def test_a_track_without_a_clock_is_refused(tmp_path, read, fault):
    "FFmpeg takes another time scale, in which the edit list hides most frames"
    path = write(tmp_path/'a.mp4')
    data = bytearray(path.read_bytes())
    at, _ = find_box(data, [b'moov', b'trak', b'mdia', b'mdhd'])
    if fault == 'no box': data[at+4:at+8] = b'free'
    else: data[at+20:at+24] = bytes(4)
    path.write_bytes(data)
    with pytest.raises((VideoError, EpisodeError), match='a.mp4 is no readable video .its time scale'): READERS[read](path)

def test_frames_before_the_first_shown_do_not_count(tmp_path):
    "An edit list that begins amid a group of pictures: the frames before it are decoded and not shown"
    path = write(tmp_path/'a.mp4')
    data = bytearray(path.read_bytes())
    at, _ = find_box(data, [b'moov', b'trak', b'edts', b'elst'])
    ticks = find_box(data, [b'moov', b'trak', b'mdia', b'mdhd'])[0]
    struct.pack_into('>i', data, at+20, struct.unpack_from('>i', data, at+20)[0]+struct.unpack_from('>I', data,
        ticks+20)[0]*6//20)
    path.write_bytes(data)
    assert VideoReader.count_frames(path) == VideoReader.frame_times(path).n == len(read_all(path)) == 34

def test_frames_that_show_nothing_are_noticed(tmp_path):
    "VP9 with a damaged header: a packet that the decoder takes without a frame or an error"
    path = write(tmp_path/'a.webm', 40, 'libvpx-vp9', 'yuv420p')
    with av.open(str(path)) as f: at = [p.pos for p in f.demux(video=0) if p.pos][20]
    data, hits = path.read_bytes(), 0
    for i in range(at, at+16):
        path.write_bytes(data[:i]+bytes([data[i] ^ 2])+data[i+1:])
        try: assert len(read_all(path)) == 40
        except VideoError as e: hits += 'a.webm' in str(e)
    assert hits

def test_missing_frames_are_named(tmp_path):
    "A gap in the timestamps is not closed by the next frame"
    path = write(tmp_path/'a.mp4', times=[i+5*(i >= 20) for i in range(40)])
    with VideoReader(path) as v:
        with pytest.raises(EpisodeError, match='a.mp4: frame [0-9]+ of 0..39 cannot be decoded .frames are missing'):
            v.read(0, 40)

@pytest.mark.parametrize('read', ['count', 'times', 'frames'])
def test_frames_lost_in_a_matroska_file_are_noticed(tmp_path, read):
    "FFmpeg skips damaged parts of such a file with a line in its log and no error"
    path = write(tmp_path/'a.mkv', 100)
    data = path.read_bytes()
    path.write_bytes(data[:len(data)//2]+bytes(400)+data[len(data)//2+400:])
    for _ in range(2): # FFmpeg logs a repeated line once
        with pytest.raises(VideoError, match='a.mkv(: frame|.*frames are lost)'): READERS[read](path)

def test_an_unknown_part_amid_frames_is_damage(tmp_path):
    "A frame whose name in a Matroska file is damaged is passed over, without an error in the log"
    path = write(tmp_path/'a.mkv', 100)
    with av.open(str(path)) as f: at = [p.pos for p in f.demux(video=0) if p.pos][50]
    data = bytearray(path.read_bytes())
    at = data.rindex(b'\xa3', 0, at+8) # a SimpleBlock begins
    data[at] = 0xf1
    path.write_bytes(data)
    for read in ('count', 'times', 'frames'):
        with pytest.raises(VideoError, match='a.mkv.*frames are lost'): READERS[read](path)

@pytest.mark.parametrize('read', ['count', 'times', 'frames'])
@pytest.mark.parametrize('fault', ['no index', 'no samples', 'no box', 'cut'])
def test_frames_lost_in_a_fragment_are_noticed(tmp_path, read, fault):
    "FFmpeg passes over a fragment whose index is damaged, or ends there, without an error"
    with VideoWriter(whole := tmp_path/'whole.mp4', (64,96)) as v: v.add(np.stack([pattern(i) for i in range(100)]))
    path = tmp_path/'a.mp4'
    with av.open(str(whole)) as a, av.open(str(path), 'w', options=dict(movflags='frag_keyframe+empty_moov')) as b:
        s = b.add_stream_from_template(a.streams.video[0])
        for p in a.demux(video=0):
            if p.size: p.stream = s; b.mux(p)
    assert VideoReader.count_frames(path) == 100 and numbers(read_all(path)) == list(range(100))
    data = bytearray(path.read_bytes())
    at = [i for i in range(len(data)) if data[i:i+4] == b'moof'][3]
    if fault == 'no index': data[at:at+4] = b'free'
    if fault == 'no samples': data[(t := data.find(b'trun', at)):t+4] = b'free'
    if fault == 'no box': data[at-4:at+4] = bytes(8)
    if fault == 'cut': del data[at-4:]; data += bytes(20)
    path.write_bytes(data)
    with pytest.raises(VideoError, match='a.mp4.*frames are lost'): READERS[read](path)

@pytest.mark.parametrize('hidden', [0, 3])
def test_frames_that_an_edit_list_hides_are_not_missing(tmp_path, hidden):
    "A trimmed video is as long as players show it; the same index with less in the file is cut short"
    path = write(tmp_path/'a.mov', 40, 'mjpeg', 'yuvj444p')
    data = bytearray(path.read_bytes())
    at, _ = find_box(data, [b'moov', b'trak', b'edts', b'elst'])
    ticks = find_box(data, [b'moov', b'trak', b'mdia', b'mdhd'])[0]
    struct.pack_into('>i', data, at+20, hidden*struct.unpack_from('>I', data, ticks+20)[0]//20)
    path.write_bytes(data)
    assert numbers(read_all(path)) == list(range(hidden,
        40)) and VideoReader.count_frames(path) == VideoReader.frame_times(path).n == 40-hidden
    if not hidden: return
    # picture 30 goes on past the end
    struct.pack_into('>I', data, find_box(data, [b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stsz'])[0]+20+4*30,
        10**7)
    path.write_bytes(data)
    with pytest.raises(VideoError, match='a.mov'): read_all(path)

def test_a_day_between_two_frames_is_no_play(tmp_path):
    "Timestamps with a gap are refused, or counted by a rate that the user gives"
    from steve1.data.contractor import RecordingError
    from steve1.data.tracks import Recording
    (folder := tmp_path/'rec').mkdir()
    write(folder/'video.mp4', times=[i+20*86400*(i >= 20) for i in range(40)])
    with pytest.raises(RecordingError, match='video.mp4: frame 20 comes 86,400 s after frame 19.*give fps'):
        Recording(folder)
    assert Recording(folder, fps=20).times.n_steps == 40
    write(folder/'video.mp4', times=[i+20*50*(i >= 20) for i in range(40)])
    assert Recording(folder).times.n_steps == 1040

@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs Linux to count open files')
def test_readers_are_closed(tmp_path):
    "No file stays open after a pass, whether it succeeds or not"
    good, bad = write(tmp_path/'a.mp4'), tmp_path/'bad.mp4'
    bad.write_bytes(good.read_bytes()[:900])
    toy_episode(tmp_path/'ep')
    def files(): gc.collect(); return len(os.listdir('/proc/self/fd'))
    for i in range(4):
        if i == 1: n = files() # fonts and caches are open by now
        VideoReader.count_frames(good), VideoReader.frame_times(good), list(read_all(good)), video_sheet([good],
            ['a'], n=2)
        with VideoReader(good) as v: v.read(0, 5)
        validate_episode(tmp_path/'ep')
        ep = Episode(tmp_path/'ep')
        ep.frames(0, 4); ep.close()
        for read in READERS.values():
            with pytest.raises((VideoError, EpisodeError)): read(bad)
        frames = VideoReader.all_frames(good)
        next(frames); frames.close()
    ep = None
    assert files() == n

# --- errors of the system

def test_errors_of_the_system_advise_to_remove_nothing(tmp_path, monkeypatch):
    "No permission, or too many open files: the episode may be whole, and nobody is told to remove it"
    toy_episode(tmp_path/'ep'); path = tmp_path/'ep'
    np.save(path/'embeds.npy', np.zeros((200,4), np.float16))
    import builtins
    def refuse(name):
        real = builtins.open
        def fails(p, *a, **kw):
            if str(p).endswith(name): raise OSError(24, 'Too many open files', str(p))
            return real(p, *a, **kw)
        return fails
    views = {'frames.mp4':lambda: Episode(path).frames(0, 4), 'actions.npy':lambda: Episode(path).actions,
        'embeds.npy':lambda: Episode(path).embeds}
    for name,view in views.items():
        with monkeypatch.context() as m:
            m.setattr(builtins, 'open', refuse(name))
            with pytest.raises(OSError, match='Too many open files') as e: view()
            assert 'remove' not in str(e.value) and name in str(e.value)

DISK = '''
import resource, signal, sys
import numpy as np
from pathlib import Path
from steve1.base.files import atomic_path
from steve1.base.video import VideoSettings, VideoWriter, toy_play
from steve1.base.overlay import save_image
from steve1.episodes import EpisodeWriter
folder, what, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
frames, actions = np.random.default_rng(0).integers(0, 255, (60,64,64,3), dtype=np.uint8), dict(jump=np.ones(60, int))
def film():
    with atomic_path(folder/'a.mp4') as p, VideoWriter(p, (64,64), settings=VideoSettings.FILM) as v:
        for f in frames: v.add(f)
def episode():
    with EpisodeWriter(folder/'ep', (64,64)) as w:
        for f in frames: w.add(f, {'jump':1})
        w.add_embeds(np.zeros((60,8)), 'none')
def sheet(): save_image(folder/'sheet.png', frames[:4].reshape(256,64,3))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try: globals()[what]()
except OSError as e: sys.stdout.write(f'OSError {e}')
'''

@pytest.mark.parametrize('what', ['film', 'episode', 'sheet'])
@pytest.mark.parametrize('limit', [0, 600, 20_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, what, limit):
    "A process that cannot write a film, an episode or an image lives on, says so, and leaves no part of it"
    env = dict(os.environ, PYTHONPATH=str(repo_root()), OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    r = subprocess.run([sys.executable, '-c', DISK, str(tmp_path), what, str(limit)], env=env, capture_output=True,
        text=True)
    assert r.returncode == 0, r.stderr[-500:]
    assert r.stdout.startswith('OSError') and str(tmp_path) in r.stdout
    assert not list(tmp_path.iterdir())
