"A world of noise that keeps the interface of steve1's environments and fails on demand; needs numpy alone, Python 3.8 on"
import json, os, signal, subprocess, sys, time
import numpy as np

class Faulty:
    def __init__(self, seed=0, size=(64,64), fault='', at=0, child=False, bad_seeds=(), only=(), pause=0., still=False, say='', info=None):
        self.info, self.seed, self.size, self.fault, self.at, self.pause, self.say = info or {}, seed, tuple(size), fault, at, pause, say
        self.bad_seeds, self.only = tuple(bad_seeds), tuple(only)         # seeds that cannot start; seeds that fail (none named: all)
        self.still = np.zeros((*self.size, 3), np.uint8) if still else None
        signal.signal(signal.SIGUSR1, lambda *_: self.hoard.append(np.ones(200_000_000, np.uint8)))      # a leak from outside
        self.hoard = []
        self.child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True).pid if child else 0

    def reset(self, seed=None):
        self.seed, self.t = self.seed if seed is None else seed, 0
        if self.seed in self.bad_seeds: os._exit(7)
        self.rng = np.random.default_rng(self.seed)
        return self.obs()

    def obs(self):
        where = dict(xpos=float(self.t), ypos=64., zpos=0., pitch=0., yaw=0.)
        return dict(pov=self.rng.integers(0, 255, (*self.size, 3), dtype=np.uint8) if self.still is None else self.still, inventory=dict(dirt=self.t), location_stats=where, isGuiOpen=False)

    def step(self, action):
        if 'no such key' in action: raise ValueError('no such key')
        self.t += 1
        time.sleep(self.pause)
        if self.t >= self.at and (self.seed in self.only or not self.only): getattr(self, 'do_'+self.fault, int)()
        return self.obs(), dict(broken='', placed='', in_water=False, eye_in_water=False, child=self.child, pid=os.getpid(), t=self.t, **self.info)

    def render(self, size): return np.full((*size, 3), self.t, np.uint8)
    def close(self): pass

    def do_die(self): os.kill(os.getpid(), signal.SIGKILL)
    def do_exit(self): sys.stderr.write('the roof is on fire\n'); sys.stderr.flush(); os._exit(3)
    def do_raise(self): raise RuntimeError('lost the connection')
    def do_hang(self): time.sleep(600)
    def do_stop(self): os.kill(os.getpid(), signal.SIGSTOP)
    def do_leak(self): self.hoard.append(np.ones(20_000_000, np.uint8)); time.sleep(.02)
    def do_chatter(self): print('noise on standard output '*1000)
    def do_ask(self): input('shall I? ')
    def do_say(self): os.write(json.loads(sys.argv[1])['replies'], self.say.encode('latin-1'))          # over the worker's own pipe
    def do_flood(self):
        while True: os.write(json.loads(sys.argv[1])['replies'], b'x'*60000)
    def do_cut(self): os.ftruncate(json.loads(sys.argv[1])['frames'], 0)
