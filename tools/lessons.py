"Lessons that teach a new policy to aim: `tools/lessons.py mini 50 60000` (see nbs/training/recipe)"
import sys
from steve1.data.embed import embed_cli
from steve1.data.generate import generate_cli
from steve1.data.sampling import sampling_cli
from steve1.train import TrainConfig
from steve1.training.launch import launch

AIMING = 'flower seeds sand wood leaves dirt'.split() # each is done by turning to a thing that can be seen

def record(dataset, task, n_episodes, n_steps, seed):
    generate_cli([dataset, n_episodes, '--only', task, '--n_steps', n_steps, '--seed', seed])
    embed_cli([dataset])

def lessons(
    scale:str,      # Begins the names of datasets, samplings and runs
    n_episodes:int, # Recordings of each task, in the datasets <scale>_flower and so on
    n_frames:int,   # Frames that each lesson trains on
):
    "The last lesson's policy is runs/<scale>/lesson6/latest.safetensors; what is there already is not made again"
    n_episodes = max(n_episodes, 4) # enough for a training and a validation list
    for i,task in enumerate(AIMING): record(f'{scale}_{task}', task, n_episodes, 400, 600_000+1000*i)
    # short: an agent that has dirt in hand must not press a slot's key, and only the first steps can tell
    record(f'{scale}_tower', 'tower', 5*n_episodes, 64, 610_000)
    datasets, init = [f'{scale}_{t}' for t in (*AIMING,'tower')], ''
    sampling_cli([f'{scale}_lessons', *datasets, '--val_share', .06]) # goes on beside all tasks
    for k in (1,2,4,6):
        sampling_cli([f'{scale}_lesson{k}', *datasets[:k], '--val_share', .06])
        launch(TrainConfig.preset('mini', name=f'{scale}/lesson{k}', sampling=f'{scale}_lesson{k}', init=init,
            n_frames=n_frames, lr=1e-3, schedule='constant', warmup_frames=10_000, mirror=.5, val_every=max(1, n_frames//4)))
        init = f'runs/{scale}/lesson{k}/latest.safetensors'

if __name__ == '__main__': lessons(sys.argv[1], *map(int, sys.argv[2:4]))
