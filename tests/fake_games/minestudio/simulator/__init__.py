"The fake of MineStudio 1.1.6's MinecraftSim: what it reports lies in `info`, inventory by slot, counters only where they are not zero"
from collections import defaultdict
import numpy as np
from games import SPACES, Game

UNKNOWN = ('ESC', 'drop', 'swapHands')

class MinecraftSim:
    def __init__(self, action_type, obs_size, render_size, seed, callbacks):
        assert (action_type, tuple(render_size), callbacks) == ('env', (640, 360), [])
        self.env = Game([k for k in SPACES['action_space'] if k not in (*UNKNOWN, 'camera')])
        self.env.seed(seed)

    def info(self, pov):
        e, count = self.env, lambda d: defaultdict(lambda: np.zeros(()), {k:float(v) for k,v in d.items()})
        slots = {0:dict(type='dirt', quantity=e.mined.get('dirt', 0)), **{i:dict(type='none', quantity=0) for i in range(1, 36)}}
        return dict(pov=pov, inventory=slots, mine_block=count(e.mined), use_item=count(e.used), custom=count(e.moved), isGuiOpen=np.array(e.gui), location_stats=e.where)

    def reset(self):
        pov = self.env.reset()
        for _ in range(20): pov, _, _ = self.env.step(self.env.action_space.no_op())
        return dict(image=pov), self.info(pov)

    def step(self, action):
        pov, done, info = self.env.step(action)
        return dict(image=pov), 0., done, done, dict(self.info(pov), **info)

    def close(self): pass
