"Four films as one GIF, two beside two: `tools/gif.py nbs/images/agent.gif a.mp4 b.mp4 c.mp4 d.mp4`"
import sys
import cv2, numpy as np
from PIL import Image
from steve1.base.video import VideoReader

START, STOP, EVERY = 20, 180, 5 # steps that are shown
SIZE, COLOURS = (216, 122), 48  # of one film

def gif(out, *films):
    "All pictures share one palette without dithering, which keeps the file small and the still parts still"
    readers = [VideoReader(f) for f in films]
    at = lambda t: [cv2.resize(r.read(t, t+1)[0], SIZE, interpolation=cv2.INTER_AREA) for r in readers]
    rows = lambda a,b,c,d: np.concatenate([np.concatenate([a,b], 1), np.concatenate([c,d], 1)])
    pictures = [Image.fromarray(rows(*at(t))) for t in range(START, STOP, EVERY)]
    palette = Image.fromarray(np.concatenate([np.asarray(p) for p in pictures[::5]])).quantize(COLOURS)
    first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    first.save(out, save_all=True, append_images=rest, duration=50*EVERY, loop=0, optimize=True)

if __name__ == '__main__': gif(*sys.argv[1:])
