"Public files made by others, where they lie beside the checkout: every loader and converter that fits them"
import numpy as np, pytest, torch
from steve1.base.video import VideoWriter
from steve1.config import find_data, repo_root
from steve1.data.basalt import BASALT_TASKS, BasaltConfig, convert_basalt
from steve1.data.contractor import ContractorConfig, RecordingError, convert_contractor, ContractorActions, _read_steps
from steve1.data.recordings import RecordingConfig, convert_recording
from steve1.data.tracks import Recording, ActionLines
from steve1.episodes import validate_episode
from steve1.policy import Policy, PolicyConfig

REAL = repo_root().parent/'shared'/'real'
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason='no real files beside the checkout')
LINES, FOREST = REAL/'basalt'/'animalpen.jsonl', REAL/'video'/'mcu_find_forest_1.mp4'

@pytest.fixture
def video(tmp_path):
    "A video as long as the real actions: each frame's grey level is its number"
    w = VideoWriter(tmp_path/'pen.mp4', (72,128))
    for i in range(1307): w.add(np.full((1,72,128,3), i % 256, np.uint8))
    w.close()
    return tmp_path/'pen.mp4'

def test_real_lines():
    "A person's actions: the attack button hangs from the start, the wheel changes slots, ESC ends it"
    rec = ContractorActions.read(LINES)
    assert len(rec.rows) == 1307 and rec.stuck.sum() == 285 and rec.stuck[0] and not rec.rows['attack'][:285].any()
    assert rec.slot.sum() == 5 and rec.rows['ESC'].nonzero()[0].tolist() == [1306] and not rec.gui.any()
    lines = ActionLines.read(LINES)
    assert lines.kind == 'contractor' and np.array_equal(lines.rows, rec.rows)

def test_real_lines_become_episodes(video, tmp_path):
    "By the contractors' rules, by BASALT's, and as one's own recording"
    plain = validate_episode(convert_contractor(video, LINES, tmp_path/'a', ContractorConfig(size=(36,64))))
    assert plain.n == 1104 and plain.meta['recording']['stuck_attack'] == 285
    pen = validate_episode(convert_basalt(video, LINES, tmp_path/'b', BasaltConfig(size=(36,64), task='pen-animals')))
    assert (
        pen.n == 1103
        and pen.meta['basalt']['quit'] == 1306
        and pen.events[0].task == BASALT_TASKS['pen-animals'].prompt
    )
    (own := tmp_path/'own').mkdir()
    video.rename(own/'video.mp4')
    (own/'actions.jsonl').write_text(LINES.read_text()+'\n\n')                  # an editor adds blank lines
    assert validate_episode(convert_recording(own, tmp_path/'c', RecordingConfig(size=(36,64)))).n == 1104

def test_written_as_real(tmp_path):
    "What `write_contractor` writes moves the mouse as the real recorder does"
    from steve1.data.contractor import write_contractor
    from steve1.episodes import Episode, list_episodes
    written = [s['mouse'] for s in _read_steps(write_contractor(Episode(list_episodes('sample')[1]), tmp_path/'x',
        (90,160), stop=200)[1])]
    real = [s['mouse'] for s in _read_steps(LINES)]
    for mouse in (written, real):
        moved = [abs(b['x']-a['x']-a['dx']) < 1e-6 and abs(b['y']-a['y']-a['dy']) < 1e-6 for a,b in zip(mouse,
            mouse[1:])]
        assert np.mean(moved) > .99 and all(abs(m['scaledX']-(m['x']-640)) < 1e-6 for m in mouse)
    assert set(real[0]) == set(written[0])

def test_real_video(tmp_path):
    """A video from another project is read whole, or refused with its name and the frame.

    This copy mixes two encodings of one recording: up to byte 524,288 (512 KiB) its data are of one, from there on and in its index
    of another. The sizes in the index do not fit the slices of the pictures 1 to 112, and the only key frame is picture 0,
    so that the later ones cannot be decoded rightly, either: what FFmpeg shows when it conceals errors is invented."""
    rec = Recording(FOREST)
    assert (rec.n, rec.size, rec.fps, rec.silent) == (200, (360,640), 30, True)
    try: n = len(list(rec.frames()))
    except RecordingError as e: assert 'mcu_find_forest_1.mp4: frame' in str(e)
    else: assert n == 200
    idm = find_data('weights', 'idm.safetensors')
    try:
        ep = validate_episode(convert_recording(FOREST, tmp_path/'e', RecordingConfig(size=(64,64),
            keep_null=True), idm=idm))
    except RecordingError as e: assert 'mcu_find_forest_1.mp4: frame' in str(e) and not (tmp_path/'e').exists()
    else: assert ep.n == rec.times.n_steps and ep.meta['recording']['kind'] == 'labelled'

@pytest.mark.parametrize('size,width,temperature', [('1x', 1024, 1.), ('3x', 3072, 3.)])
def test_real_temperature(size, width, temperature):
    "Without its .model file, a VPT policy gets the temperature that the real file has"
    cfg = PolicyConfig.from_model(REAL/'vpt'/f'foundation-model-{size}.model')
    assert (cfg.hidsize, cfg.temperature) == (width, temperature)
    with torch.device('meta'): tensors = Policy(cfg).to_official()
    assert PolicyConfig.from_tensors(tensors).replace(timesteps=cfg.timesteps) == cfg
