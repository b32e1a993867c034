"A play function of noise, quick to make, with a pause in which kills find it"
import time
from types import SimpleNamespace
import numpy as np
from steve1.base.actions import ACTION_DTYPE

def play(seed, n_steps, size, only=None):
    rng = np.random.default_rng(seed)
    time.sleep(.02)
    frames, rows = np.repeat(rng.integers(0, 255, (n_steps//10+1,*size,3), dtype=np.uint8), 10,
        0)[:n_steps], np.zeros(n_steps, ACTION_DTYPE)
    rows['jump'] = rng.integers(0, 2, n_steps)
    return SimpleNamespace(frames=frames, rows=rows, spans=[], events=[], masked=[], arena='nowhere')
