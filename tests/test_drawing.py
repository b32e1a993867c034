"One picture, whoever draws it: eight rays at a time or one, by one thread or several, to the last bit"
import hashlib, os, subprocess, sys
import numpy as np
import pytest
from steve1.world import drawing
from steve1.world.blocks import ARENAS, HEIGHT, Kind, TEXTURES, WIDTH, refresh_column
from steve1.world.blockworld import World

needs_walk = pytest.mark.skipif(drawing._compiled_walk() is None, reason='no C compiler, or no AVX-512')

@pytest.fixture(params=list(ARENAS))
def world(request):
    "An arena with single blocks of every kind strewn into air, water and ground, across the edges of the torus"
    w, rng = World(11, request.param), np.random.default_rng(5)
    for x,y,z in zip(rng.integers(-6, 26, 400), rng.integers(1, HEIGHT-6, 400), rng.integers(-6, 26, 400)):
        w.blocks[x%WIDTH,y,z%WIDTH] = rng.integers(0, 16)
    for x in range(WIDTH):
        for z in range(WIDTH): refresh_column(w.blocks, w.tops, w.light, x, z)
    return w

def looks(rng, n):
    "Views `(n,10)` from anywhere near the corner of the torus: in air, water or ground, in any direction"
    v = np.zeros((n,10))
    v[:,0], v[:,1], v[:,2] = rng.uniform(-20, 40, n), rng.uniform(1, 44, n), rng.uniform(-20, 40, n)
    v[:,3], v[:,4] = rng.uniform(-180, 180, n), rng.uniform(-90, 90, n)
    v[::3,:3] = np.floor(v[::3,:3]) + .5                   # rays through edges and corners
    v[::4,3], v[::5,4] = 90*rng.integers(-2, 3, len(v[::4])), 90*rng.integers(-1, 2, len(v[::5]))
    v[:,5], v[:,7], v[:,9] = rng.integers(0, 2, n), -1, rng.uniform(0, 1, n)
    v[1::2,6:9] = np.floor(v[1::2,:3]) + rng.integers(-1, 2, (len(v[1::2]),3))
    return v

def cast(world, view, size, walk):
    hits, eye = np.empty(size, drawing._HIT), drawing._eyes(view[None], world.tops[None])[0]
    if walk is None: drawing._cast_rows(world.blocks, TEXTURES, eye, size[0], 0, hits)
    else: walk(world.blocks.ctypes.data, TEXTURES.ctypes.data, eye.ctypes.data, *size, 0, size[0], hits.ctypes.data)
    return hits

@needs_walk
def test_every_record_is_the_same(world):
    "What rays meet, how far away, how much water lies before it: equal to the last bit"
    met, rng = set(), np.random.default_rng(0)
    plants = np.argwhere((world.blocks >= Kind.TALL_GRASS) & (world.blocks <= Kind.DANDELION))
    for i,view in enumerate(looks(rng, 120)):
        if i%5==0: view[:3] = rng.choice(plants) + rng.uniform(size=3)      # amid its leaves
        size = [(24,32), (17,23), (2,4), (1,1)][i%4]
        one, eight = cast(world, view, size, None), cast(world, view, size, drawing._compiled_walk())
        assert one.tobytes() == eight.tobytes(), (view, np.argwhere(one!=eight)[:3])
        met |= set(one['kind'].ravel().tolist())
    assert met >= set(range(16)) - {int(Kind.WATER)}       # all that stops a ray, and nothing

@needs_walk
@pytest.mark.parametrize('size', [(64,64), (33,47), (360,640)])
def test_pictures_are_the_same(world, size, monkeypatch):
    "With hand, hotbar and inventory, walking, diving and mining, in one part or many"
    world.p.pitch = 40.
    for step in range(4):
        for _ in range(6): world.step(dict(forward=1, jump=step%2, attack=1, camera=(2., 9.)))
        if step==3: world.step(dict(inventory=1))
        fast = world.render(size)
        with monkeypatch.context() as m:
            m.setattr(drawing, '_compiled_walk', lambda: None)
            assert (world.render(size) == fast).all()
            m.setattr(drawing, '_LARGE', 1)
            m.setattr(drawing, '_threads', lambda: 3)
            assert (world.render(size) == fast).all()
        with monkeypatch.context() as m:
            m.setattr(drawing, '_LARGE', 1)
            m.setattr(drawing, '_threads', lambda: 3)
            m.setattr(drawing, '_BAND', 600)
            assert (world.render(size) == fast).all()

def test_without_a_compiler(tmp_path):
    "No compiler in the PATH, or one that refuses: the picture is drawn all the same"
    (tmp_path/'cc').write_text('#!/bin/sh\nexit 1\n')
    (tmp_path/'cc').chmod(0o755)
    code = """import hashlib
from steve1.world import drawing
from steve1.world.blockworld import World
print(drawing._compiled_walk(), hashlib.sha256(World(3, 'lake').render((64,64)).tobytes()).hexdigest())"""
    want = f"None {hashlib.sha256(World(3, 'lake').render((64,64)).tobytes()).hexdigest()}"
    for path in (tmp_path, tmp_path/'nothing'):
        env = dict(os.environ, PATH=str(path), STEVE1_DATA=str(tmp_path/'data'))
        run = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
        assert run.stdout.strip() == want, run.stderr[-500:]
