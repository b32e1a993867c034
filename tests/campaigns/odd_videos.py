"""Videos as they are found: other codecs, rates, colours, edit lists, covers, rotation, cut or damaged: read right or refused by name"""
import json, random, shutil, struct, warnings
from fractions import Fraction
import harness

LIMIT = 120.
PATCHES = (200,40,50), (40,170,60), (60,70,190), (180,180,60)   # colours that every picture shows, left to right
BITS = 8                                                        # the number of a picture, in bars above them

# --- a video whose pictures say which they are

def picture(i, size):
    import numpy as np
    h, w = size
    x = np.full((h,w,3), 40, np.uint8)
    for b in range(BITS): x[:h//2, b*w//BITS:(b+1)*w//BITS] = 215 if i >> b & 1 else 35
    for k,c in enumerate(PATCHES): x[h//2:, k*w//4:(k+1)*w//4] = c
    return x

def number(x):
    h, w = x.shape[:2]
    return sum(1 << b for b in range(BITS) if x[h//4, (2*b+1)*w//(2*BITS)].mean() > 125)

def colour_error(x):
    import numpy as np
    h, w = x.shape[:2]
    return max(int(np.abs(x[h*3//4, (2*k+1)*w//8].astype(int)-c).max()) for k,c in enumerate(PATCHES))

CODECS = dict(mp4=('libx264','libx264','libx265','mpeg4'), mov=('libx264','mjpeg','prores_ks'),
    mkv=('libx264','libx265','ffv1','libvpx-vp9'),
    webm=('libvpx-vp9','libvpx'), avi=('mpeg4','mjpeg','libx264'))
FORMATS = dict(libx264=('yuv420p','yuv422p','yuv444p','yuv420p10le'), libx265=('yuv420p','yuv420p10le'),
    mpeg4=('yuv420p',), mjpeg=('yuvj420p','yuvj444p'), prores_ks=('yuv422p10le',),
    ffv1=('yuv420p','yuv444p'), libvpx=('yuv420p',), **{'libvpx-vp9':('yuv420p','yuv444p')})
# arithmetic coding without a checksum: a decoder takes any bits. FFmpeg may say nothing of damaged HEVC slices:
# no error, no line in its log, no mark on the frame
UNSEALED = 'libvpx-vp9', 'libx265'
RATES = 20, 30, 25, 60, 15, Fraction(30000,1001), 24, 12

def draw_case(rng):
    "A video as a dict; `odd` names what is wrong with it, '' if nothing is"
    suffix = rng.choice(list(CODECS))
    codec = rng.choice(CODECS[suffix])
    fmt = rng.choice(FORMATS[codec])
    rate = rng.choice(RATES)
    # MPEG-4 counts time in at most 65,535 parts of a second
    if codec == 'mpeg4' and (100*Fraction(rate)).numerator > 65535: rate = 30
    full = fmt.startswith('yuvj') or codec in ('libx264','libx265') and rng.random() < .3
    case = dict(suffix=suffix, codec=codec, fmt=fmt, rate=[Fraction(rate).numerator, Fraction(rate).denominator],
        n=rng.randrange(20, 120), size=[rng.choice((64,90,96)), rng.choice((96,128,160))],
        full=full, space=5 if codec in ('mjpeg','prores_ks') else rng.choice((2, 5, 1)) if codec in ('libx264',
            'libx265') else 2, gop=rng.choice((1, 12, 250)), bframes=rng.choice((0, 2, 3)),
        audio=rng.random() < .2, fast=rng.random() < .2, fragments=False, seed=rng.randrange(1 << 30), odd='')
    # a sound track moves the first picture of a fragment
    if not case['audio']: case['fragments'] = rng.random() < .2
    if suffix in ('mp4','mov') and codec == 'libx264' and fmt == 'yuv444p' and rng.random() < .5:
        case['size'] = [rng.choice((63,91)), rng.choice((97,129))]
    odds = ['varied', 'late', 'cut', 'damaged', 'gap', 'day', 'second']
    if suffix in ('mp4','mov'): odds += ['cover', 'turned', 'edits', 'doubled']
    if rng.random() < .6: case['odd'] = rng.choice(odds)
    # avi has one rate and no times
    if suffix == 'avi' and case['odd'] in ('varied', 'gap', 'day', 'late'): case['odd'] = ''
    # no second codec for it here
    if suffix == 'webm' and case['odd'] == 'second': case['odd'] = ''
    return case

def times(case):
    "When each picture is shown, in ticks of the rate's hundredth"
    rng, n = random.Random(case['seed']), case['n']
    step = [100]*n
    if case['odd'] == 'varied': step = [rng.choice((50, 100, 100, 150, 300)) for _ in range(n)]
    if case['odd'] == 'gap': step[n//2] = 100*rng.randrange(3, 40)
    if case['odd'] == 'day': step[n//2] = int(86400*100*Fraction(*case['rate']))
    at, out = 37*100 if case['odd'] == 'late' else 0, []
    for s in step: out.append(at); at += s
    return out

def write(path, case):
    import av
    import numpy as np
    rate, (h,w) = Fraction(*case['rate']), case['size']
    options = {}
    if case['suffix'] in ('mp4','mov'):
        flags = ['faststart']*case['fast'] or ['frag_keyframe+empty_moov']*case['fragments']
        options = dict(movflags=flags[0]) if flags else {}
    with av.open(str(path), 'w', options=options) as out:
        s = out.add_stream(case['codec'], rate=rate)
        s.height, s.width, s.pix_fmt = h, w, case['fmt']
        c = s.codec_context
        if case['suffix'] != 'avi': c.time_base = s.time_base = 1/(100*rate)
        else: c.time_base = 1/rate
        c.gop_size, c.color_range, c.colorspace = case['gop'], 2 if case['full'] else 1, case['space']
        if case['codec'] in ('libx264','libx265'):
            s.options = dict(crf='8', preset='ultrafast', bf=str(case['bframes']),
                **({'x265-params':'log-level=none'} if case['codec'] == 'libx265' else {}))
        elif case['codec'] in ('mpeg4','mjpeg','libvpx','libvpx-vp9'): c.bit_rate = 4_000_000
        if case['codec'].startswith('libvpx'): s.options = dict(deadline='realtime', **{'cpu-used':'8'})
        more = [out.add_stream('mpeg4', rate=20)] if case['odd'] == 'second' else []
        for m in more: m.height, m.width, m.pix_fmt = 32, 48, 'yuv420p'
        sound = out.add_stream('libopus' if case['suffix'] == 'webm' else 'aac',
            rate=48000) if case['audio'] and case['suffix'] != 'avi' else None
        space = dict(dst_colorspace=case['space']) if case['space'] in (1, 5) else dict(dst_colorspace=5)
        for i,t in enumerate(times(case)):
            f = av.VideoFrame.from_ndarray(picture(i, (h,w)), format='rgb24').reformat(format=case['fmt'],
                dst_color_range=2 if case['full'] else 1, **space)
            f.pts, f.time_base = (t, 1/(100*rate)) if case['suffix'] != 'avi' else (t//100, 1/rate)
            f.color_range, f.colorspace = 2 if case['full'] else 1, case['space']
            out.mux(s.encode(f))
        out.mux(s.encode())
        for m in more:
            for i in range(10):
                f = av.VideoFrame.from_ndarray(np.zeros((32,48,3), np.uint8), format='rgb24')
                f.pts = i; out.mux(m.encode(f))
            out.mux(m.encode())
        if sound:
            for k in range(8):
                a = av.AudioFrame.from_ndarray(np.zeros((2,960), np.float32), format='fltp', layout='stereo')
                a.sample_rate, a.pts = 48000, 960*k
                out.mux(sound.encode(a))
            out.mux(sound.encode())

def box(data, names, start=0, end=None):
    "(start, size) of a box within boxes"
    end = len(data) if end is None else end
    while start < end:
        n, name = struct.unpack('>I4s', data[start:start+8])
        if name == names[0]: return (start, n) if len(names) == 1 else box(data, names[1:], start+8, start+n)
        start += n
    raise ValueError('no such box')

def make_odd(path, case):
    "What is done to the finished file"
    import cv2
    import numpy as np
    rng, data, odd = random.Random(case['seed']), bytearray(path.read_bytes()), case['odd']
    if odd == 'cut': data = data[:rng.randrange(1, len(data))]
    if odd == 'damaged':
        start = len(data)//4
        for _ in range(rng.choice((1, 3))):
            i = rng.randrange(start, len(data))
            data[i:i+200] = rng.choice((bytes(200), rng.randbytes(200)))[:len(data)-i]
    if odd == 'turned':
        p, _ = box(data, [b'moov', b'trak', b'tkhd'])
        turn = rng.choice(((0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)))
        struct.pack_into('>9i', data, p+12+(20 if data[p+8] == 0 else 32)+16, turn[0] << 16, turn[1] << 16, 0,
            turn[2] << 16, turn[3] << 16, 0, 0, 0, 1 << 30)
    if odd == 'edits':   # the first pictures are decoded and not shown
        try: p, n = box(data, [b'moov', b'trak', b'edts', b'elst'])
        except ValueError: return
        struct.pack_into('>i', data, p+16+4, struct.unpack_from('>i', data, p+16+4)[0]+100*rng.randrange(1, 8))
    if odd == 'cover' and b'moof' not in data:
        jpg = cv2.imencode('.jpg', np.full((64,64,3), 128, np.uint8))[1].tobytes()
        made = lambda name, content: struct.pack('>I4s', len(content)+8, name)+content
        ilst = made(b'ilst', made(b'covr', made(b'data', struct.pack('>II', 13, 0)+jpg)))
        udta = made(b'udta', made(b'meta', b'\0'*4+made(b'hdlr', b'\0'*8+b'mdirappl'+b'\0'*9)+ilst))
        (p,n), (q,m) = box(data, [b'moov']), box(data, [b'moov', b'mvhd'])
        if p < box(data, [b'mdat'])[0]: return        # offsets would change
        data = data[:p]+made(b'moov', bytes(data[p+8:q+m]+udta+data[q+m:p+n]))+data[p+n:]
    if odd == 'doubled' and b'moof' not in data:      # an index that names more pictures than there are
        p, n = box(data, [b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stts'])
        struct.pack_into('>I', data, p+16, 2*struct.unpack_from('>I', data, p+16)[0])
    path.write_bytes(data)

# --- what readers make of it

def sequence(frames): return [number(x) for x in frames], max([colour_error(x) for x in frames], default=0)

def decoded(path):
    from steve1.base.video import VideoReader
    from av.video.reformatter import VideoReformatter
    convert = VideoReformatter()
    return sequence([convert.reformat(f, format='rgb24').to_ndarray() for f in VideoReader.all_frames(path)])

def chunk(path):
    from steve1.base.video import VideoReader
    with VideoReader(path) as v: return sequence(v.read(0, VideoReader.count_frames(path)))

def steps(path):
    "The episode of 20 steps a second that a recording becomes: which picture each step shows"
    from steve1.base.actions import KEYS
    from steve1.data.recordings import RecordingConfig, convert_recording
    from steve1.data.tracks import Recording
    from steve1.episodes import Episode
    (own := path.parent/'own').mkdir()
    shutil.copy(path, own/f'video{path.suffix}')
    n = Recording(own).n
    (own/'actions.jsonl').write_text(''.join(json.dumps(dict.fromkeys(KEYS, 0) | dict(forward=1,
        camera=[0., 0.]))+'\n' for _ in range(n)))
    h, w = Recording(own).size
    ep = Episode(convert_recording(own, path.parent/'ep', RecordingConfig(size=(h if h > 15 else 16, w))))
    return sequence(ep.frames())

READERS = dict(decoded=decoded, chunk=chunk, steps=steps)

def shown_at_steps(case, first):
    "The picture that each step of 1/20 s shows, the first picture at 0"
    at = [Fraction(t, 100)/Fraction(*case['rate']) for t in times(case)[first:]]
    at = [t-at[0] for t in at]
    end = at[-1]+sorted(b-a for a,b in zip(at, at[1:]))[(len(at)-1)//2]
    out, k, i = [], 0, 0
    while Fraction(k, 20) < end:
        while i+1 < len(at) and at[i+1] <= Fraction(k, 20): i += 1
        out.append(first+i); k += 1
    return out

def judge(case, name, found):
    "'' if what a reader found is what the video shows"
    numbers, error = found
    first = numbers[0] if case['odd'] == 'edits' and numbers else 0
    if not 0 <= first <= 8: return f'begins with picture {numbers[0]}'
    want = list(range(first, case['n']))
    if case['odd'] == 'damaged' and name != 'steps': # no decoder notices every changed bit: none may be lost, or move
        return '' if len(numbers) == len(want) else f'{len(numbers)} pictures for {len(want)}'
    if case['odd'] == 'damaged' and case['codec'] in UNSEALED: # nor can the steps: every bit stands for some picture
        want = shown_at_steps(case, first)
        return '' if abs(len(numbers)-len(want)) <= 12 else f'{len(numbers)} steps for {len(want)}'
    if name == 'steps':
        want = shown_at_steps(case, first)
        if len(numbers) != len(want): # the last picture's duration is the file's own matter
            if abs(len(numbers)-len(want)) > 12: return f'{len(numbers)} steps for {len(want)}'
            k = min(len(numbers), len(want))
            numbers, want = numbers[:k], want[:k]
        near = sum(a != b for a,b in zip(numbers, want))     # Matroska counts milliseconds
        if max((abs(a-b) for a,b in zip(numbers, want)), default=0) > 1 or case['suffix'] not in ('mkv',
            'webm') and near > len(want)//3:
            return f'steps show {numbers[:12]}… for {want[:12]}…'
    elif numbers != want:
        at = next((i for i,(a,b) in enumerate(zip(numbers, want)) if a != b), min(len(numbers), len(want)))
        return f'{len(numbers)} pictures for {len(want)}, from {at} on {numbers[at:at+4]} for {want[at:at+4]}'
    return f'colours differ by {error}' if error > 25 else ''

# readers that may refuse a file of a kind that is not damaged
MAY_REFUSE = dict(chunk={'varied', 'gap', 'day', 'edits', 'late'}, steps={'day', 'gap', 'turned'}, decoded={'turned'})
DAMAGE = 'cut', 'damaged', 'doubled'

def read(case, path, name, out):
    warnings.simplefilter('ignore')
    try: out.write_text(json.dumps(READERS[name](path)))
    except (ValueError, OSError) as e: out.write_text(json.dumps(f'{type(e).__name__}: {e}'))

def cases(rng):
    while True: yield draw_case(rng)

def run(case):
    path = harness.case_folder()/f'v.{case["suffix"]}'
    write(path, case)
    make_odd(path, case)
    for name in READERS:
        # no presentation times: only read from its beginning
        if (name, case['suffix'], case['codec']) == ('chunk', 'avi', 'libx264'): continue
        out = harness.case_folder()/f'{name}.json'
        child = harness.fork(read, case, path, name, out, memory=1500)
        status = child.wait(40)
        if status:
            return f"{'hang' if status == 'hang' else 'crash' if status < 0 else 'unclear'}: {name} of {case['odd'] or 'a sound file'}: {child.last()}"
        found = json.loads(out.read_text())
        if isinstance(found, str):
            if path.name not in found and path.stem not in found and 'own' not in found:
                return f'unnamed: {name}: {found[:300]}'
            if case['odd'] in DAMAGE or case['odd'] == 'turned' or case['odd'] in MAY_REFUSE.get(name, ()): continue
            return f"refused: {name} of {case['odd'] or 'a sound file'}: {found[:300]}"
        if wrong := judge(case, name, found): return f"wrong: {name} of {case['odd'] or 'a sound file'}: {wrong}"
    return 'ok'
