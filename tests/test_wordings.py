"The shipped text side on wordings that it was not trained on, and what a film does with a Chinese title"
import warnings
import av, numpy as np, pytest, torch
from steve1.acting.goals import System
from steve1.base.video import VideoSettings, VideoWriter
from steve1.config import find_data, repo_root
from steve1.models.tokenizers import PromptWarning
from steve1.world.tasks import TASKS

LISTS = repo_root()/'data'/'wordings'

def wordings(name):
    "Task -> wordings of a list"
    lines = [l for l in (LISTS/f'{name}.txt').read_text(encoding='utf-8').splitlines() if l and not l.startswith('#')]
    return {task:[w.strip() for w in rest.split('|')] for task,_,rest in (l.partition(':') for l in lines)}

@pytest.fixture(scope='module')
def system(): return System.load(find_data('weights'))

def goals(system, texts):
    return torch.nn.functional.normalize(system.prior(system.clip.embed_text(texts), z=0), dim=-1)

def accuracy(system, lists):
    "Share of the wordings whose goal lies nearest to the canonical goal of their own task"
    names = list(TASKS)
    canonical = goals(system, [t.prompt for t in TASKS.values()])
    right = [names[j] == task for task,texts in lists.items() for j in (goals(system, texts) @ canonical.T).argmax(1)]
    return np.mean(right)

def test_lists_are_complete_and_held_out():
    for name,n in (('held_out', 10), ('chinese', 6)):
        found = wordings(name)
        assert list(found) == list(TASKS) and min(map(len, found.values())) >= n
        for task,texts in found.items(): assert not set(texts) & set(TASKS[task].captions)

def test_held_out_wordings_find_their_task(system): # 0.19 with a tower that knew the words of its captions only
    assert accuracy(system, wordings('held_out')) > .85

def test_chinese_wordings_find_their_task(system):  # 0.08 without the dictionary
    assert accuracy(system, wordings('chinese')) > .95

def test_usual_wordings_find_their_task(system):
    assert accuracy(system, {k:t.held_out[::4] for k,t in TASKS.items()}) > .97

@pytest.mark.parametrize('prompt', ['咖啡', 'рубить дерево', 'qzxv', '的', '!?'])
def test_nothing_known_is_said(system, prompt):
    with pytest.warns(PromptWarning, match='never learned a word'): system.text_goal(prompt)

def test_known_words_are_not_said(system):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for prompt in ('rummage through the backpack', '砍一棵树', '打開背包'): system.text_goal(prompt)

def test_film_keeps_its_whole_title(tmp_path):
    with VideoWriter(tmp_path/'f.mp4', (48,64), settings=VideoSettings.FILM, title='砍一棵树') as film:
        film.add(np.zeros((48,64,3), np.uint8))
    with av.open(tmp_path/'f.mp4') as f: assert f.metadata['title'] == '砍一棵树'
