"Copy a trained checkpoint to data/weights, in half precision: `tools/ship.py runs/policy/best.safetensors policy`"
import sys, torch
from steve1.config import data_dir
from steve1.base.checkpoints import load_tensors, save_tensors

def ship(
    source:str, # Checkpoint, below data/
    name:str,   # File name in data/weights, without .safetensors
    temperature:float=None, # Of a policy at play: below 1 it draws likelier actions; None: as it was trained
    guidance:float=None, # Of a policy at play; None: what suits its size
):
    "Round a checkpoint to float16 (relative error 1/2000), which halves its size; loading converts it back to float32"
    tensors,meta = load_tensors(data_dir(source))
    for k,v in dict(temperature=temperature, guidance=guidance).items():
        if v: meta['config'][k] = float(v)
    half = {k:v.half() if v.dtype==torch.float32 else v for k,v in tensors.items()}
    for k,v in half.items():
        if v.is_floating_point() and not torch.isfinite(v).all():
            raise ValueError(f'{source}: {k} does not fit into half precision')
    path = save_tensors(data_dir('weights', f'{name}.safetensors'), half, meta)
    print(f'{path.name}: {path.stat().st_size/1e6:.1f} MB')

if __name__=='__main__': ship(*sys.argv[1:5])
