"Teach a new policy to aim, by lessons of one, two, four and six tasks: `tools/lessons.py 200 300000` (see nbs/training/recipe)"
import sys
from steve1.data.embed import embed_cli
from steve1.data.generate import generate_cli
from steve1.data.sampling import sampling_cli
from steve1.train import TrainConfig
from steve1.training.launch import launch

TASKS = 'flower seeds sand wood leaves dirt'.split() # each is done by turning to a thing that can be seen

def lessons(
    n_episodes:int, # Recordings of each task, in the datasets lesson_flower and so on
    n_frames:int,   # Frames that each lesson trains on
):
    "The last lesson's policy is runs/lesson6/latest.safetensors; what is there already is not made again"
    n_episodes = max(n_episodes, 4) # enough for a training and a validation list
    for i,task in enumerate(TASKS):
        generate_cli([f'lesson_{task}', n_episodes, '--only', task, '--n_steps', 400, '--seed', 600_000+1000*i])
        embed_cli([f'lesson_{task}'])
    init = ''
    for k in (1,2,4,6):
        sampling_cli([f'lesson{k}', *(f'lesson_{t}' for t in TASKS[:k]), '--val_share', .06])
        launch(TrainConfig.preset('mini', name=f'lesson{k}', sampling=f'lesson{k}', init=init, n_frames=n_frames, lr=1e-3,
            schedule='constant', warmup_frames=10_000, mirror=.5, val_every=n_frames//4))
        init = f'runs/lesson{k}/latest.safetensors'

if __name__ == '__main__': lessons(*map(int, sys.argv[1:3]))
