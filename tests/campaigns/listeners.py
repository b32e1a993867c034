"""No training, generation or world opens a port to other machines"""
import ipaddress, os, socket, time
from pathlib import Path
import harness

LIMIT = 400.

def listening(pids):
    "(kind, address, port) of the sockets on which these processes listen; UDP sockets that are bound count"
    inodes = set()
    for p in pids:
        try: links = [os.readlink(f) for f in Path(f'/proc/{p}/fd').iterdir()]
        except OSError: continue
        inodes |= {l[8:-1] for l in links if l.startswith('socket:')}
    found = set()
    for kind in ('tcp', 'tcp6', 'udp', 'udp6'):
        for line in (
            Path(f'/proc/net/{kind}').read_text().splitlines()[1:] if Path(f'/proc/net/{kind}').exists() else ()
        ):
            row = line.split()
            if row[9] not in inodes or kind.startswith('tcp') and row[3] != '0A': continue
            host, port = row[1].split(':')
            raw = b''.join(bytes.fromhex(host[i:i+8])[::-1] for i in range(0, len(host), 8))
            found.add((kind, socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw),
                int(port, 16)))
    return found

def is_outside(address):
    a = ipaddress.ip_address(address)
    return not (getattr(a, 'ipv4_mapped', None) or a).is_loopback

def train(procs, workers):
    from steve1.train import TrainConfig
    from steve1.training.launch import launch
    launch(TrainConfig.preset('tiny', n_frames=20*64, save_every=10**9, workers=workers, name='net'), procs=procs)

def generate(workers):
    from steve1.data.generate import generate
    generate(harness.case_folder()/'gen', 3, n_steps=80, size=(32,32), workers=workers)

def world(_):
    from steve1.world.process import ProcessEnv
    with ProcessEnv('faulty:Faulty', path=[harness.ROOT/'tests'/'fake_games']) as env:
        env.reset()
        for _ in range(20): env.step(dict(jump=1)); time.sleep(.02)

WAYS = dict(train=lambda c: train(c['procs'], c['workers']), generate=lambda c: generate(c['workers']), world=world)

def cases(rng):
    while True:
        for what in WAYS:
            yield dict(what=what, procs=rng.choice((1, 2, 2)), workers=rng.choice((0, 1)) if what == 'train' else 1)

def run(case):
    root = harness.campaign_folder()/'toy'
    if not root.exists(): harness.toy_data(root)
    harness.set_data(root)
    harness.retry(root/'runs'/'net')
    child, seen = harness.fork(WAYS[case['what']], case), set()
    until = time.monotonic()+300
    while child.alive() and time.monotonic() < until:
        seen |= listening([child.pid, *harness.descendants(child.pid)])
        time.sleep(.25)
    status = child.wait(1)
    if status: return f"{'hang' if status == 'hang' else 'failed'}: {case['what']} ended with {status}: {child.last()}"
    outside = sorted(x for x in seen if is_outside(x[1]))
    return f'open port: {outside}' if outside else 'ok'
