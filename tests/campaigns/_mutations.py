"Small changes of files, by format: what a bad disk, a half-hearted editor or a hostile author makes of them"
import io, json, re, struct, zipfile

DEEP = '['*900 + ']'*900
ODD_VALUES = [None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 10**400, 1e308, float('nan'),
    float('inf'), -float('inf'), '', 'x'*5000,
    '\ud800', 'a\0b',
    '../../../../tmp/x', '/etc/passwd', [], {}, [[]], {'a':{}}, '1', [1]*3, list(range(2000)), '<b>']

def copy(x): return json.loads(json.dumps(x))

def places(x, at=()):
    "The path of every value inside a JSON value, its own included"
    yield at
    inner = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for k,v in inner: yield from places(v, (*at, k))

def change_value(x, rng):
    "A JSON value with one or two places changed"
    x = copy(x)
    for _ in range(rng.choice((1, 1, 1, 2))):
        paths = [p for p in places(x) if p]
        if not paths: return rng.choice(ODD_VALUES)
        *above, k = rng.choice(paths)
        parent = x
        for a in above: parent = parent[a]
        old, what = parent[k], rng.random()
        is_number = type(old) in (int, float)
        if what < .12: del parent[k]
        elif what < .3 and is_number:
            parent[k] = rng.choice((-old, old+1, old*1000, old*10**9, old*10**15, old/3, -1, 0))
        elif what < .36 and isinstance(old, list) and old: parent[k] = rng.choice((old*2, old*50, old[:-1]))
        elif what < .42 and isinstance(parent, dict): parent[f'{k}x'] = parent.pop(k)
        elif what < .45: parent[k] = rng.choice((json.loads(DEEP), {'a':old}))
        else: parent[k] = rng.choice(ODD_VALUES)
    return x

def json_bytes(x): return json.dumps(x).encode()

# --- one function a format: (bytes, rng) -> bytes

def change_bytes(data, rng):
    "Bits flipped, bytes and blocks overwritten, removed, doubled; ends cut; numbers in texts replaced"
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not b: return b'\0'
        n, i, k = len(b), rng.randrange(len(b)), rng.randrange(1, 100)
        match rng.randrange(10):
            case 0 | 1 | 2: b[i] ^= 1 << rng.randrange(8)
            case 3: b[i] = rng.choice((0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)))
            case 4: b = b[:i] if rng.random() < .7 else b[i:]
            case 5: j = rng.randrange(n); b[i:i] = b[j:j+k]
            case 6: del b[i:i+k]
            case 7:
                w = rng.choice((2, 4, 8))
                b[i:i+w] = rng.choice((b'\xff'*w, b'\x7f'+b'\xff'*(w-1), bytes(w), (1).to_bytes(w, 'big'),
                    (1 << 30).to_bytes(8, 'little')))
            case 8: b[i:i+k] = rng.randbytes(k)
            case _:
                if found := list(re.finditer(rb'\d+', bytes(b))):
                    m = rng.choice(found)
                    b[m.start():m.end()] = rng.choice((b'0', b'-1', b'99999999999', b'9'*30, b'9'*400, b'9'*5000,
                        b'1e400', b'NaN'))
                else: b += rng.randbytes(k)
    return bytes(b)

BOXES = re.compile(
    rb'stts|stsz|stco|stsc|stss|ctts|elst|mvhd|mdhd|tkhd|stsd|avc1|avcC|colr|pasp|moov|trak|mdia|minf|stbl|mdat|ftyp|hdlr|dinf|dref|edts|uuid|free'
)

def change_mp4(data, rng):
    "A field near the name of a box set to an extreme"
    if rng.random() < .35: return change_bytes(data, rng)
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        found = [m.start() for m in BOXES.finditer(bytes(b))]
        if not found: break
        i = max(0, rng.choice(found)-4+4*rng.randrange(12))
        old = int.from_bytes(b[i:i+4], 'big')
        b[i:i+4] = rng.choice((0, 1, 2, 3, 20, 4096, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff,
            rng.randrange(1 << 32),
            old ^ 1 << rng.randrange(32))).to_bytes(4, 'big')
    return bytes(b)

def change_safetensors(data, rng):
    "The header as JSON, the config within it, its length"
    if rng.random() < .25: return change_bytes(data, rng)
    n = struct.unpack('<Q', data[:8])[0]
    head, body = json.loads(data[8:8+n]), data[8+n:]
    if rng.random() < .65:
        head['__metadata__']['steve1'] = json.dumps(change_value(json.loads(head['__metadata__']['steve1']), rng))
    else: head = change_value(head, rng)
    text = json_bytes(head)
    text += b' '*(-len(text) % 8)
    length = len(text) if rng.random() < .95 else rng.choice((0, 1 << 40, 1 << 63, len(text)+8))
    return struct.pack('<Q', length)+text+body

def change_zip(data, rng):
    "A record changed and sealed again with the right checksum, renamed, or there twice"
    if rng.random() < .3: return change_bytes(data, rng)
    out = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if rng.random() < .05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, 'w', how) as new:
        infos = old.infolist()
        main = [i for i in infos if i.filename.endswith('data.pkl')]
        chosen = main[0] if main and rng.random() < .7 else rng.choice(infos)
        for i in infos:
            content = old.read(i)
            if i is chosen:
                content = change_bytes(content, rng)
                if rng.random() < .1:
                    i.filename = rng.choice(('../../x', '/tmp/x', i.filename+'x', 'archive/data/../data/0'))
                if rng.random() < .1: new.writestr(i.filename, change_bytes(content, rng))
            new.writestr(i.filename, content)
    return out.getvalue()

DTYPES = "'<f4'", "'|O'", "'<f8'", "'>f2'", "'|S2'", "'|V2'", "'<M8[s]'", "'<c8'", "'|b1'", "'|i1'", "'<u2'", \
    "'|V0'", '[]', '()', "('<f4', -1)"

def change_npy(data, rng):
    "The text of the header: number format, order, shape"
    if rng.random() < .4: return change_bytes(data, rng)
    n = struct.unpack('<H', data[8:10])[0]
    head, body = data[10:10+n].decode('latin1'), data[10+n:]
    shape = rng.choice(('(0', '(1', '(-1', '(-5', '('+'9'*30, '('+'-'*4000+'1',
        '(99999999999999', r'(\g<1>0', r'(2,3,\g<1>', '('))
    change = rng.choice(((r"'[<|]\w+'|\[\(.*\)\]", rng.choice(DTYPES)), ('False', 'True'), (r'\((\d+)', shape),
        ("'descr'", "'shape'"),
        (r'\}', '}; import os'), (r'\[\(', "[('x', '|O'), (")))
    head = re.sub(*change, head, count=rng.choice((0, 1))).rstrip()+' '
    head += ' '*(-(10+len(head)+1) % 64)+'\n'
    length = len(head) if rng.random() < .95 else rng.randrange(65536)
    return data[:8]+struct.pack('<H', length)+head.encode('latin1')+body

def change_jsonl(data, rng):
    "The value or the text of a line, the order and the number of lines"
    if rng.random() < .3: return change_bytes(data, rng)
    lines = data.splitlines()
    i, what = rng.randrange(len(lines)), rng.random()
    if what < .75: lines[i] = json_bytes(change_value(json.loads(lines[i]), rng))
    elif what < .82: lines.insert(i, rng.choice(lines))
    elif what < .88: del lines[i]
    elif what < .92: lines[i] = b'['*rng.choice((100, 100_000))
    elif what < .96: lines[i] = lines[i][:-rng.randrange(1, len(lines[i]))]
    else: lines = lines*rng.choice((2, 30))
    return b'\n'.join(lines)+b'\n'*rng.randrange(2)

ODD_LINES = ('../../../etc', '/etc/passwd', '/', '.', '', '\0', 'a\0b', 'x'*300, 'x'*70_000, 'é\u2028x', '\udcff',
    's3://x/y', 'memory://nowhere/x',
    'http://127.0.0.1:9/x', 'file:///etc', '-1', '1e9', '9'*23, '9'*5000, '{', 'null')

def change_text(data, rng):
    "A line too many"
    if rng.random() < .5: return change_bytes(data, rng)
    lines = data.decode().splitlines()
    lines.insert(rng.randrange(len(lines)+1), rng.choice(ODD_LINES))
    return '\n'.join(lines).encode('utf-8', 'surrogateescape')

BOMB = b'a: &a [x,x,x,x,x,x,x,x,x]\n'+b''.join(b'%c: &%c [%s]\n' % (98+i, 98+i, b','.join([b'*%c' % (97+i)]*9))
    for i in range(9))+b'name: *j\n'
YAML_TRAPS = (b'lr: !!python/object/apply:os.system ["true"]\n', BOMB, b'<<: *nothing\n', b'\tx', b'- 1',
    b'lr: 2001-13-45', b'seed: 0x'+b'f'*4000, b'seed: !!int ""', b'lr: !!float _',
    b'name: !!timestamp x', b'all_steps: !!bool x',
    b'name: [', b'? [1,2]\n: 3\n', b'1: 2\n', b'\x00', b'lr: .nan', b'lr: .inf\n')

def change_yaml(data, rng):
    "YAML's own traps, else as JSON"
    import yaml
    if rng.random() < .3: return change_bytes(data, rng)
    if rng.random() < .25: return data+b'\n'+rng.choice(YAML_TRAPS)
    return json_bytes(change_value(yaml.safe_load(data), rng))

def change_json(data, rng):
    return change_bytes(data, rng) if rng.random() < .3 else json_bytes(change_value(json.loads(data), rng))

CHANGES = dict(mp4=change_mp4, json=change_json, jsonl=change_jsonl, npy=change_npy,
    safetensors=change_safetensors, zip=change_zip, text=change_text,
    yaml=change_yaml, bytes=change_bytes)

def mutate(data, kind, rng):
    "Another content for a file of a format"
    try: return CHANGES[kind](data, rng)
    # a value that no longer fits the change
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError): return change_bytes(data, rng)
