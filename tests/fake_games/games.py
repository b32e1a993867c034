"""A MineRL without Minecraft, made from tests/golden/minerl_spaces.json: the same names, shapes and types, the pictures are noise.

It is as strict as the real one is lax: an action must hold exactly the keys that the game knows, in the types that it wants."""
import json, os
from types import SimpleNamespace
import numpy as np

SPACES = json.loads(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'golden', 'minerl_spaces.json')).read())
SETTINGS = dict(fov_range=[70, 70], gamma_range=[2, 2], guiscale_range=[1, 1], cursor_size_range=[16., 16.], frameskip=1)
BLOCKS = ('dirt', 'grass_block', 'oak_log', 'stone')
STATS = ('walk_on_water_one_cm', 'walk_under_water_one_cm', 'swim_one_cm', 'jump')

def zeros(space):
    "An observation of zeros in a space of minerl_spaces.json"
    if 'type' not in space or isinstance(space['type'], dict): return {k:zeros(v) for k,v in space.items()}
    return np.zeros(space['shape'], 'int64' if space['type'] == 'Enum' else space['dtype'])

class Game:
    "The inner environment, for MineRL and MineStudio alike: what a step does is told by the keys"
    def __init__(self, keys):
        self.keys, self.world, self.done = keys, None, True
        self.observation_space = {'mine_block': SimpleNamespace(spaces=dict.fromkeys(BLOCKS))}
        self.action_space = SimpleNamespace(no_op=lambda: {**dict.fromkeys(keys, 0), 'camera':np.zeros(2, np.float32)})

    def seed(self, seed):
        assert isinstance(seed, int), 'Seed must be an int!'
        self.world = seed

    def reset(self):
        self.rng, self.world, self.done, self.t = np.random.default_rng(self.world), None, False, 0     # forgets its seed, as MineRL does
        self.mined, self.used, self.moved, self.place, self.air, self.gui = {}, {}, {}, np.zeros(3), 300, False
        return self.observe()

    def observe(self):
        where = zeros(SPACES['observation_space']['location_stats'])
        where.update(xpos=np.array(self.place[0]), ypos=np.array(64.), zpos=np.array(self.place[2]), pitch=np.array(self.place[1]))
        pov = SPACES['observation_space']['pov']
        self.where = where
        return self.rng.integers(0, 255, pov['shape'], dtype=pov['dtype'])[::-1]     # a view that is upside down, as MineRL's

    def step(self, action):
        if self.done: raise RuntimeError('Attempted to step an environment server with done=True')
        assert set(action) == {*self.keys, 'camera'}, set(action) ^ {*self.keys, 'camera'}
        assert action['camera'].shape == (2,) and action['camera'].dtype == np.float32
        assert all(type(v) is int and v in (0, 1) for k,v in action.items() if k != 'camera')
        def count(d, k): d[k] = d.get(k, 0) + 1
        if action['attack']: count(self.mined, 'dirt')
        if action['use']: count(self.used, 'dirt' if self.mined else 'apple')
        if action['sneak']: count(self.moved, 'walk_under_water_one_cm')
        if action['sprint']: count(self.moved, 'swim_one_cm')
        if action['inventory']: self.gui = not self.gui
        self.place += (action['forward']*.2, action['camera'][0], 0)
        self.air = 300 - 10*action['sneak']
        self.t += 1
        fault, at = os.environ.get('FAKE_FAULT', ''), int(os.environ.get('FAKE_AT', 5))
        if fault == 'dead' and self.t >= at: self.done = True
        if fault == 'typeerror' and self.t >= at: raise TypeError('something inside MineRL')
        if fault == 'lost' and self.t >= at: return self.observe(), True, dict(error='Connection timed out!')
        return self.observe(), self.done, {}

def check_settings(resolution, **kw):
    assert kw == SETTINGS and tuple(resolution) == (640, 360), (resolution, kw)
