"What the code looks like, held: `python tools/figures.py` prints the figures"
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import figures

@pytest.fixture(scope='module')
def whole(): return figures.whole(figures.rows())

def test_exported_cells_are_short(whole):
    assert whole['median'] <= 12 and whole['nine_in_ten'] <= 25, (whole['median'], whole['nine_in_ten'])
def test_lines_fit_a_page(whole):
    assert whole['wide'] <= .01, f"{whole['wide']:.1%} of the exported lines are longer than {figures.WIDE} characters"
def test_modules_have_one_job(whole): assert not whole['long_modules']
def test_functions_take_few_arguments(whole): assert not whole['many']
def test_private_names_stay_at_home(whole): assert not whole['private']
def test_a_public_name_stands_for_one_thing(whole): assert not whole['twice']
def test_public_names_are_few(whole): assert whole['public'] <= 450, whole['public']
def test_the_story_shows_what_it_does(whole): assert {k:v for k,v in whole['story'].items() if v < .5} == {}
