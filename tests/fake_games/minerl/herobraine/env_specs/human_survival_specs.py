"The fake of MineRL 1.0.2's HumanSurvival: observation and info as `minerl_spaces.json` has them"
import numpy as np
from games import SPACES, Game, check_settings, zeros

class Env(Game):
    def __init__(self): super().__init__([k for k in SPACES['action_space'] if k != 'camera'])

    def seen(self, pov):
        obs = {k:zeros(v) for k,v in SPACES['observation_space'].items() if k in ('life_stats', 'equipped_items')}
        obs['life_stats']['air'] = np.array(self.air)
        inventory = {k:np.zeros((), np.int32) for k in SPACES['inventory_items']}
        inventory.update(air=np.array(35, np.int32), dirt=np.array(self.mined.get('dirt', 0), np.int32))
        stats = {k:np.array(self.moved.get(k, 0)) for k in ('walk_on_water_one_cm', 'walk_under_water_one_cm', 'swim_one_cm')}
        count = lambda d: {k:np.array(d.get(k, 0)) for k in SPACES['inventory_items']}
        return dict(obs, pov=pov, inventory=inventory, location_stats=self.where, mine_block=count(self.mined), use_item=count(self.used), full_stats=stats)

    def reset(self): return self.seen(super().reset())

    def step(self, action):
        pov, done, info = super().step(action)
        return self.seen(pov), 0., done, info or dict(isGuiOpen=self.gui, location_stats=self.where)

    def close(self): pass

class HumanSurvival:
    def __init__(self, **settings): check_settings(**settings)
    def make(self): return Env()
