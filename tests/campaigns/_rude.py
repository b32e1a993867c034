"A world whose reply to one call is replaced by something else; needs numpy alone, as the worlds of tests/fake_games"
import json, os, random, time
from faulty import Faulty

PALETTE = [None, True, -1, 0, 1e308, float('nan'), float('inf'), 2**70, 10**400, -2**63, '', 'x'*5000,
    'KeyboardInterrupt', 'SystemExit', '\x00', [], {}, [[]], [1, 2, 3],
    [10**6, 10**6, 3], [64, 64, 3], [64, 64, 4], [2, 2, 3], {'error':'MemoryError'}, 1.5]

def paths(x, at=()):
    "Paths of all parts of nested dicts and lists"
    yield at
    for k,v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
        yield from paths(v, at+(k,))

def mutate_structure(reply, rng):
    "Replace, remove or add a part"
    reply = json.loads(json.dumps(reply))
    *above, last = rng.choice([p for p in paths(reply) if p])
    where = reply
    for k in above: where = where[k]
    how = rng.choice(('replace', 'replace', 'remove', 'add'))
    if how == 'replace': where[last] = rng.choice(PALETTE)
    elif how == 'remove': del where[last]
    elif isinstance(where, dict):
        where[rng.choice(('error', 'failed', 'text', 'frame', 'obs', 'info', 'x'))] = rng.choice(PALETTE)
    else: where.insert(0, rng.choice(PALETTE))
    return json.dumps(reply).encode()+b'\n'

def mutate_bytes(line, rng):
    "Flip, cut, insert, repeat"
    how, at = rng.choice(('flip', 'cut', 'insert', 'twice', 'blank', 'text', 'deep', 'long', 'error',
        'nulls')), rng.randrange(len(line))
    noise = bytes(rng.randrange(256) for _ in range(rng.choice((1, 3, 300))))
    if how == 'flip': return bytes(b ^ (1 << rng.randrange(8) if rng.random() < .02 else 0) for b in line[:-1])+b'\n'
    if how == 'cut': return line[:at] + rng.choice((b'', b'\n'))
    if how == 'insert': return line[:at]+noise+line[at:]
    if how == 'twice': return line*rng.choice((2, 50))
    if how == 'blank': return b'\n'+line
    if how == 'text': return b'WARNING: something\n'+line
    if how == 'deep': return rng.choice((b'[', b'{"a":'))*200_000+b'\n'
    if how == 'long': return b'x'*rng.choice((2_000_000, 1_000_000))+b'\n'
    if how == 'error':
        return json.dumps({rng.choice(('error', 'failed')):rng.choice(PALETTE+['ValueError', 'RuntimeError',
            'print', 'OSError']), 'text':rng.choice(PALETTE)}).encode()+b'\n'
    return line.replace(b'"', b'\0', 3)

class Rude(Faulty):
    def __init__(self, rude=0, seeds=(), call='step', at=2, **kw):
        super().__init__(**kw)
        self.rude, self.rude_seeds, self.call, self.when, self.saved = random.Random(rude), tuple(seeds), call, at, None

    def pipe(self):
        "The descriptor of the replies: the highest one of a pipe that is open for writing"
        found = []
        for f in os.listdir('/proc/self/fd'):
            try:
                if (
                    'pipe:' in os.readlink('/proc/self/fd/' + f)
                    and int(open('/proc/self/fdinfo/' + f).read().split('flags:')[1].split()[0], 8) & 1
                ):
                    found.append(int(f))
            except OSError: pass
        return max(found)

    def interfere(self, reply):
        fd, rng = self.pipe(), self.rude
        line = json.dumps(reply).encode()+b'\n'
        how = rng.choices(('structure', 'bytes', 'flood', 'drip', 'close', 'half', 'truncate', 'grow'),
            (12, 12, 1, 1, 1, 1, 1, 1))[0]
        if how == 'structure': self.send(fd, mutate_structure(reply, rng))
        elif how == 'bytes': self.send(fd, mutate_bytes(line, rng))
        elif how == 'flood':
            while True: self.send(fd, b'x'*65536)
        elif how == 'drip':
            while True: self.send(fd, b'x'); time.sleep(.01)
        elif how == 'close': os.close(fd); time.sleep(600)
        elif how == 'half':
            self.send(fd, line[:len(line)//2]); os.kill(os.getpid(), 9)
        else:
            for f in os.listdir('/proc/self/fd'):
                try:
                    if 'memfd' in os.readlink('/proc/self/fd/'+f):
                        os.ftruncate(int(f), 0 if how == 'truncate' else 1 << 33)
                except OSError: pass
            self.send(fd, line)
        self.saved = os.dup(fd)                         # the honest reply goes nowhere
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null); self.fd = fd

    def send(self, fd, data):
        while data: data = data[os.write(fd, data):]

    def honest(self):
        if self.saved is not None:
            os.dup2(self.saved, self.fd)
            os.close(self.saved); self.saved = None

    def show(self, frame):
        "Put a picture where the other side looks, as the worker does after the call"
        for f in os.listdir('/proc/self/fd'):
            try:
                if 'memfd' in os.readlink('/proc/self/fd/'+f): os.pwrite(int(f), frame.tobytes(), 0)
            except OSError: pass

    def reset(self, seed=None):
        self.honest()
        obs = super().reset(seed)
        if self.call == 'reset' and self.seed in self.rude_seeds:
            self.show(obs['pov'])
            self.interfere({'obs':{k:v for k,v in obs.items() if k != 'pov'}, 'frame':list(obs['pov'].shape),
                'info':None})
        return obs

    def step(self, action):
        self.honest()
        obs, info = super().step(action)
        if self.call == 'step' and self.t == self.when and self.seed in self.rude_seeds:
            self.interfere({'obs':{k:v for k,v in obs.items() if k != 'pov'}, 'frame':list(obs['pov'].shape),
                'info':info})
        return obs, info
