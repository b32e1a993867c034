"The documentation site: builds offline, links lead somewhere, pages ask nothing of the network"
import re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip('mkdocs', reason="the site needs mkdocs: pip install -e '.[dev]'")

class Page(HTMLParser):
    "Links, ids, and what the browser would load"
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.loads = [], set(), []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag in ('img', 'script', 'iframe', 'source', 'video') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('rel') in ('stylesheet', 'preload', 'icon', 'preconnect') and a.get('href'):
            self.loads.append(a['href'])

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')
    r = subprocess.run([sys.executable, str(ROOT/'tools'/'site.py'), str(out)], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-2000:]+r.stderr[-3000:]
    return out, {p:Page(p.read_text(encoding='utf-8')) for p in out.rglob('*.html')}

def test_links_lead_somewhere(site):
    out, pages = site
    wrong = []
    for path,page in pages.items():
        for href in page.links:
            url, anchor = urldefrag(href)
            if re.match(r'[a-z]+:', url) or path.name == '404.html': continue
            target = (path.parent/unquote(url)).resolve() if url else path
            if target not in pages and not target.is_file() and not (target/'index.html').is_file():
                wrong.append(f'{path.relative_to(out)}: {href}')
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                wrong.append(f'{path.relative_to(out)}: no #{anchor} in {href}')
    assert not wrong, '\n'.join(wrong)

def test_pages_load_nothing_from_elsewhere(site):
    _, pages = site
    assert not [(p.name, l) for p,page in pages.items() for l in page.loads if re.match(r'(https?:)?//', l)]
    for css in site[0].rglob('*.css'):
        assert not re.search(r'@import\s+["\'](https?:)?//|url\(["\']?(https?:)?//',
            css.read_text(encoding='utf-8')), css.name

def test_a_formula_stays_in_its_line(site):
    inline = r'<math[^>]*display="inline"'
    texts = {p.name:p.read_text(encoding='utf-8') for p in site[1]}
    assert sum(len(re.findall(inline, t)) for t in texts.values()) > 50
    alone = [f'{n}: {m[0][-60:]}' for n,t in texts.items() for m in re.finditer(r'</(?:p|div|h\d|ul|ol)>\s*'+inline, t)]
    assert not alone, alone

def test_every_notebook_and_module_has_a_page(site):
    out, pages = site
    sys.path.insert(0, str(ROOT/'tools'))
    from repo import notebooks
    there = {p.relative_to(out).with_suffix('').as_posix() for p in pages}
    assert {p.relative_to(ROOT/'nbs').with_suffix('').as_posix() for p in notebooks()} <= there
    modules = {p.relative_to(ROOT/'steve1').with_suffix('').as_posix().replace('/', '.')
        for p in (ROOT/'steve1').rglob('*.py') if not p.stem.startswith('_')}
    assert {f'api/{m}' for m in modules} <= there

def test_reference_pages_say_what_is_ours(site):
    "A constructor without a docstring shows none, rather than Python's own"
    pages = list((site[0]/'api').glob('*.html'))
    assert pages and not [p.name for p in pages if 'Initialize self' in p.read_text(encoding='utf-8')]
