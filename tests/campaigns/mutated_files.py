"""Every format that is read, bent in thousands of ways: refused by name or read as it was, in bounded time and memory"""
import gc, hashlib, json, os, random, re, resource, shutil, traceback, warnings
from pathlib import Path
import harness
from _formats import make_formats
from _mutations import mutate

# a case may take; MB it may ask for, beyond what this process has; MB it may hold
SECONDS, MEMORY, HELD = 20., 1000., 400.
PRIVATE = {}

def digest(x, h=None):
    "A hash of what a reader found"
    import numpy as np, torch
    top, h = h is None, h or hashlib.sha256()
    if torch.is_tensor(x): x = (x.detach().view(torch.uint8) if x.dtype == torch.bfloat16 else x.detach()).cpu().numpy()
    if isinstance(x, np.ndarray): h.update(f'{x.dtype}{x.shape}'.encode()+np.ascontiguousarray(x).tobytes())
    elif isinstance(x, dict):
        for k,v in x.items(): h.update(repr(k).encode()); digest(v, h)
    elif isinstance(x, (list, tuple)):
        h.update(b'[%d' % len(x))
        for v in x: digest(v, h)
    else: h.update(repr(x)[:100_000].encode('utf-8', 'surrogatepass'))
    return h.hexdigest()[:16] if top else None

def formats():
    "The sound files and what their readers find, made once"
    if not PRIVATE:
        import cv2, torch
        torch.set_num_threads(1); cv2.setNumThreads(1)
        warnings.simplefilter('ignore')
        PRIVATE['formats'] = make_formats(harness.campaign_folder()/'sound')
        PRIVATE['found'] = {}
        gc.collect()
        gc.freeze()   # a collection before each fork would take longer than the case
    return PRIVATE['formats']

def at_fault(e):
    "The line of ours that raised"
    ours = [f for f in traceback.extract_tb(e.__traceback__) if '/steve1/' in f.filename]
    return f'{Path(ours[-1].filename).name}:{ours[-1].lineno}' if ours else '?'

def verdict(e, file):
    "What an error counts as"
    text, names = str(e), {file.name, file.stem, *file.parts[-3:-1]}   # the file, the episode or the dataset
    names |= {p.name for p in Path().rglob('*.*')}                       # or another file that it does not fit
    said = f'{type(e).__name__}: {text[:200]} @ {at_fault(e)}'
    if isinstance(e, MemoryError): return f'memory: {said}'
    setting = re.match(r'\w*Config\b|.*\b(must|unknown|has no|is not|not one of|needs?|from|choose)\b', text,
        re.S) if file.name == 'params.json' else None
    if isinstance(e, (ValueError, OSError)) and not isinstance(e, UnicodeError) or isinstance(e,
        TypeError) and re.match(r'\w*Config(\.\w+)?: ', text):
        return 'clean' if setting or any(n in text for n in names) else f'unnamed: {said}'
    return f'unclear: {said}'

def read(name, folder, out):
    "In a child: what the reader finds, or how it fails"
    warnings.simplefilter('ignore')
    f = formats()[name]
    harness.set_data(folder); os.chdir(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try: said = {k:digest(v) for k,v in f.read(folder).items()}
    except SystemExit: said = 'clean' # a command, which says why
    except BaseException as e:
        said = verdict(e, Path(f.file)); traceback.print_exc()
    grew = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024
    if grew > HELD: said = f'memory: {grew:.0f} MB were held, then {said}'[:300]
    out.write_text(json.dumps(said))

def attempt(name, change=None):
    "Read a copy of the sound file, changed by `change`"
    f, folder = formats()[name], harness.campaign_folder()/'tried'
    harness.retry(folder)
    shutil.copytree(harness.campaign_folder()/'sound'/f.folder, folder, symlinks=True)
    if change: change(folder/f.file)
    out = harness.case_folder()/'found.json'
    out.unlink(missing_ok=True)
    child = harness.fork(read, name, folder, out, memory=MEMORY)
    status = child.wait(SECONDS)
    if status == 'hang': return f'hang: {SECONDS:.0f} s'
    if not out.exists(): return f'crash: ended with {status}: {child.last()}'
    return json.loads(out.read_text())

def trimming(f, path=None):
    """What says which pictures of an mp4 are shown: its edit list and the two time scales that the list counts in.

    Another list or scale may show others, as a video that was trimmed does; None where one of the boxes is missing"""
    data = Path(path or harness.campaign_folder()/'sound'/f.folder/f.file).read_bytes()
    at = [data.find(box) for box in (b'edts', b'mvhd', b'mdhd')]
    return [data[i-4:i+(36 if k == 0 else 20)] for k,i in enumerate(at)] if min(at) > 0 else None

def is_trimmed(f, path):
    new = trimming(f, path)
    return new is not None and new != trimming(f)

def cases(rng):
    names = list(formats())
    only = os.environ.get('TORTURE_FORMATS')
    if only: names = [n for n in names if re.search(only, n)]
    while True:
        for name in names:
            yield dict(format=name, seed=rng.randrange(1 << 30), other=rng.choice(names) if rng.random() < .02 else '')

def run(case):
    f = formats()[case['format']]
    sound = PRIVATE['found']
    if f.name not in sound:
        sound[f.name] = attempt(f.name)
        if not isinstance(sound[f.name], dict): return f'unsound: {f.name}: {sound[f.name]}'
    was = sound[f.name]
    def change(path):
        rng, other = random.Random(case['seed']), formats().get(case['other'])
        data = mutate(path.read_bytes(), f.kind,
            rng) if other is None else (harness.campaign_folder()/'sound'/other.folder/other.file).read_bytes()
        path.write_bytes(data)
        shutil.copy(path, harness.case_folder()/path.name)
    found = attempt(f.name, change)
    if f.kind == 'mp4' and isinstance(found, dict) and is_trimmed(f, harness.case_folder()/Path(f.file).name):
        return 'ok'
    if found == 'clean': return 'ok'
    if not isinstance(found, dict): return re.sub(r'^(\w+): ', rf'\1: {f.name}: ', found)
    changed = [k for k in was.keys() | found.keys() if was.get(k) != found.get(k) and k not in f.free]
    return f"silent: {f.name}: other {', '.join(sorted(changed))} without an error" if changed else 'ok'
