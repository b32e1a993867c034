"Record the scripted experts in Luanti, one task an episode: `tools/record_luanti.py 24` (see nbs/experiments/luanti)"
import sys
from steve1.data.generate import generate_cli
from steve1.world.tasks import TASKS

HARDER = 'wood dirt seeds flower sand leaves tower'.split() # these need more places
SEED = 7_100_000                                     # far from the seeds that judge

def record_luanti(
    n_places:int, # Recordings of each task, 400 steps each; twice as many of the harder tasks
):
    "All tasks in the dataset `luanti`; what is there already is not made again"
    for i,task in enumerate(TASKS):
        n = n_places*(2 if task in HARDER else 1)
        generate_cli(['luanti', n, '--env', 'luanti', '--only', task, '--n_steps', 400, '--seed', SEED+1000*i])

if __name__ == '__main__': record_luanti(int(sys.argv[1]))
