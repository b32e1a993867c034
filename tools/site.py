"""Build the documentation site from the notebooks: `python tools/site.py [OUT]` (OUT: _docs)

Notebooks become pages as they stand, with their saved outputs; nothing is executed. Each module gets a page with its public
names. Pages need no network: no fonts, scripts or formulas come from elsewhere (formulas are MathML, which browsers draw)."""
import html, importlib, inspect, os, re, shutil, subprocess, sys, tempfile
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import nbformat, yaml
from fastcore.docments import docments
from latex2mathml.converter import convert as to_mathml
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
sys.path[:0] = [str(ROOT), str(ROOT/'tools')]
from repo import readme, rows

CODE = r'```.*?```|`[^`\n]+`'                                       # where a dollar is a dollar

def formulas(text):
    "$…$ and $$…$$ as MathML, code left alone"
    def math(m):
        if m[0].startswith('`'): return m[0]
        block, inline = m[1], m[2]
        try: out = to_mathml(block or inline, display='block' if block else 'inline')
        except Exception: return m[0]                               # no formula after all
        return f'\n\n<div class="formula">{out}</div>\n\n' if block else f'<span>{out}</span>' # Markdown takes <math> alone for a block
    return re.sub(CODE+r'|\$\$(.+?)\$\$|(?<![\\\w$])\$([^$\n]+?)\$(?!\w)', math, text, flags=re.S)

def options(text):
    "Code with options such as `--n_steps 300`: no line breaks between the dashes and the name"
    def whole(m):
        if m[1] is None: return m[0]
        return '<code>' + re.sub(r'--\w+', r'<span class="option">\g<0></span>',
            html.escape(m[1], quote=False)) + '</code>'
    return re.sub(r'```.*?```|`([^`\n|]*--\w[^`\n|]*)`', whole, text, flags=re.S)

def links(text):
    "Links to notebooks and to the README as links to pages"
    text = re.sub(r'\]\(([\w./-]+)\.ipynb(#[\w-]*)?\)', lambda m: f"]({m[1]}.md{(m[2] or '').lower()})", text)
    text = re.sub(r'\]\((#[\w-]+)\)', lambda m: f']({m[1].lower()})', text)
    return re.sub(r'\]\((?:\.\./)*(LICENSE|tests/golden/README\.md|CONTRIBUTING\.md)\)',
        r'](https://github.com/steve1/steve1/blob/main/\1)', text)

def page(path, out):
    "A notebook as Markdown with its pictures beside it"
    nb = nbformat.read(path, 4)
    nb.metadata.language_info = dict(name='python') # what code is highlighted as
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*(hide|default_exp)\b', c.source, re.M)]
    for c in nb.cells:
        if c.cell_type == 'code': c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        else: c.source = options(formulas(links(c.source)))
    text, resources = MarkdownExporter().from_notebook_node(nb)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name,data in resources.get('outputs', {}).items():
        new = f'{out.stem}_{name}'
        (out.parent/new).write_bytes(data)
        text = text.replace(f']({name})', f']({new})')
    text = re.sub(r'<style scoped>.*?</style>', '', text, flags=re.S)
    text = text.replace('<table border="1" class="dataframe">', '<table>') # drawn like every other table
    module = next((m for m in [re.search(r'#\| default_exp ([\w.]+)', path.read_text(encoding='utf-8'))] if m), None)
    if module:
        up = '../'*len(out.relative_to(out_root(out)).parts[:-1])
        text = re.sub(r'\A(# .+\n\n*(?:> .+\n)?)', rf'\1\n*Exported as `steve1.{module[1]}`: '
            rf'[reference]({up}api/{module[1]}.md)*\n', text)
    out.write_text(text, encoding='utf-8')

def out_root(path): return next(p for p in path.parents if (p/'.pages').exists())

def reference(module, out):
    "The public names of a module, each with its docments as a table"
    m = importlib.import_module(f'steve1.{module}')
    parts = [f'# steve1.{module}\n', (m.__doc__ or '').strip()+'\n']
    for name in m.__all__:
        x = getattr(m, name)
        if inspect.isclass(x): parts += [f'## {name}\n', (inspect.getdoc(x) or '')+'\n', *class_members(x, name)]
        elif callable(x) and inspect.isfunction(f := inspect.unwrap(x)): parts += [f'## {name}\n', described(f, name)]
        else: parts.append(f'## {name}\n\n```python\n{name} = {short(x)}\n```\n')
    out.write_text('\n'.join(parts), encoding='utf-8')

def short(x, n=300):
    text = re.sub(r' at 0x[0-9a-f]+', '', repr(x)) # addresses differ from run to run
    return text if len(text) <= n else text[:n]+' …'

def class_members(x, name):
    "Fields of a dataclass, or the constructor; then the methods"
    if is_dataclass(x):
        yield table([(f.name, getattr(f.type, '__name__', f.type), default(f), docments(x).get(f.name))
            for f in fields(x)])
    elif '__init__' in vars(x) and not hasattr(x, '_fields'): yield described(x.__init__, name)
    for k,v in vars(x).items():
        v = inspect.unwrap(getattr(v, '__func__', v)) if callable(v) or isinstance(v,
            (classmethod, staticmethod)) else v
        if inspect.isfunction(v) and not k.startswith('_') and v.__module__.startswith('steve1'):
            yield f'### {name}.{k}\n\n' + described(v, f'{name}.{k}')

def default(f):
    return 'required' if f.default is MISSING and f.default_factory is MISSING else short(f.default
        if f.default is not MISSING else f.default_factory(), 60)

def described(f, name):
    "Signature, docstring and a row for each parameter"
    said, sig = docments(f), inspect.signature(f)
    params = [(k, p) for k,p in sig.parameters.items() if k not in ('self', 'cls')]
    rows = [(k, kind(p.annotation), '' if p.default is p.empty else short(p.default, 60), said.get(k))
        for k,p in params]
    if said.get('return') or sig.return_annotation is not sig.empty:
        rows.append(('returns', kind(sig.return_annotation), '', said.get('return')))
    own = inspect.cleandoc(f.__doc__ or '') # not its base class's, which says nothing of it
    return f"```python\n{name}({', '.join(k for k,_ in params)})\n```\n\n{own}\n\n" + table(rows)

def kind(annotation):
    return '' if annotation is inspect.Parameter.empty else getattr(annotation, '__name__',
        str(annotation)).replace('typing.', '')

def table(rows):
    if not rows: return ''
    cell = lambda x: re.sub(r'\s+', ' ', str(x or '')).replace('|', '\\|').replace('<', '&lt;')
    code = lambda x: '`{}`'.format(re.sub(r'\s+', ' ', str(x))) if x not in ('', None) else ''
    return '| name | type | default | what it is |\n|---|---|---|---|\n' + ''.join(f'| {code(n)} | {code(t)} | {code(d)} | '
        f'{cell(c)} |\n' for n,t,d,c in rows)

def title(path):
    return next((l[2:].strip() for c in nbformat.read(path, 4).cells if c.cell_type == 'markdown'
        for l in c.source.splitlines() if l.startswith('# ')), path.stem)

def navigation(modules):
    "Tabs of the site: story, side rooms, experiments, guides, 中文, reference"
    story = [{title(p):f'{p.stem}.md'} for p in rows() if p.parent == NBS]
    folders = dict.fromkeys(p.parent.name for p in rows() if p.parent != NBS)
    rooms = [{f:[{title(p):f'{f}/{p.stem}.md'} for p in rows() if p.parent.name == f]} for f in folders]
    def place(p): return FIRST.index(p.stem) if p.stem in FIRST else len(FIRST)
    def of(folder):
        return [{title(p):p.relative_to(NBS).with_suffix('.md').as_posix()}
            for p in sorted((NBS/folder).glob('*.ipynb'), key=lambda p: (place(p), p))]
    packages = {f'steve1.{k}' if k else 'steve1':[m for m in modules if m.rpartition('.')[0] == k]
        for k in dict.fromkeys(['', *(m.rpartition('.')[0] for m in modules)])}
    nav = [{'Home':'index.md'}, {'Story':story}, {'Supporting notebooks':rooms}, {'Experiments':of('experiments')},
        {'Guides':of('guides')}]
    if (NBS/'guides'/'zh').is_dir(): nav.append({'中文':[{'简介':'zh.md'}, *of('guides/zh')]})
    return nav + [{'Reference':[{k:[{m.rpartition('.')[2]:f'api/{m}.md'} for m in ms]} for k,ms in packages.items()]}]

# guides in the order in which they are read
FIRST = ['quickstart', 'how_it_works', 'finetune', 'old_commands', 'commands']

STYLE = """.md-grid { max-width: 72rem }
.md-typeset pre > code { font-size: .6rem }
.md-typeset table:not([class]) { font-size: .68rem }
.md-typeset .formula { overflow: auto hidden; margin: 1em 0; padding-bottom: .2em }
.md-typeset img { background: #fff }
.md-typeset .option { white-space: nowrap }
"""

SEPARATOR = r'[\s\u200b\-,:!=\[\]()"/.]+' # Chinese words are divided by U+200B

def config(out, source, nav):
    return dict(site_name='steve1', site_description='STEVE-1 as notebooks: text to keyboard and mouse in '
        'Minecraft', docs_dir=str(source), site_dir=str(out), nav=nav,
        use_directory_urls=False, extra_css=['style.css'],
        theme=dict(name='material', font=False, features=['navigation.tabs', 'navigation.indexes',
            'navigation.top', 'toc.follow', 'search.highlight', 'content.code.copy'],
            palette=[dict(scheme='default', media='(prefers-color-scheme: light)', primary='teal',
                toggle=dict(icon='material/weather-night', name='dark')),
                     dict(scheme='slate', media='(prefers-color-scheme: dark)', primary='teal',
                         toggle=dict(icon='material/weather-sunny', name='light'))]),
        plugins=[dict(search=dict(lang=['en', 'zh'], separator=SEPARATOR))], markdown_extensions=['tables',
            'attr_list', 'md_in_html', dict(toc=dict(permalink=True)), 'pymdownx.highlight', 'pymdownx.superfences'],
        validation=dict(links=dict(not_found='warn', anchors='info', unrecognized_links='info')))

def sources(folder):
    "All pages as Markdown in a folder; returns the navigation"
    (folder/'.pages').touch()
    for p in sorted(NBS.rglob('*.ipynb')):
        if p.name != 'index.ipynb' and '.ipynb_checkpoints' not in p.parts:
            page(p, folder/p.relative_to(NBS).with_suffix('.md'))
    text, _ = readme()
    (folder/'index.md').write_text(home(text), encoding='utf-8')
    if (zh := ROOT/'README.zh-CN.md').exists():
        (folder/'zh.md').write_text(home(zh.read_text(encoding='utf-8')), encoding='utf-8')
    shutil.copytree(NBS/'images', folder/'images')
    modules = [re.search(r'#\| default_exp ([\w.]+)', p.read_text(encoding='utf-8'))[1] for p in rows()]
    (folder/'api').mkdir()
    for m in modules: reference(m, folder/'api'/f'{m}.md')
    (folder/'style.css').write_text(STYLE)
    return navigation(modules)

def home(text):
    "README as the first page: its links start at the repository's root"
    # badges are pictures from elsewhere
    text = re.sub(r'^\[!\[.*\n+', '', text.split('-->', 1)[-1].lstrip(), flags=re.M)
    text = re.sub(r'\]\(nbs/([\w./-]+)\)', r'](\1)', text)
    text = re.sub(r'\]\(README\.zh-CN\.md\)', '](zh.md)', re.sub(r'\]\(README\.md(#[\w-]*)?\)',
        lambda m: f'](index.md{m[1] or ""})', text))
    return options(formulas(links(text.replace('| · [', '| ·&nbsp;['))))

def build(out):
    with tempfile.TemporaryDirectory() as tmp:
        source = Path(tmp)/'pages'
        source.mkdir()
        cfg = Path(tmp)/'mkdocs.yml'
        cfg.write_text(yaml.safe_dump(config(out, source, sources(source)), allow_unicode=True))
        return subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--clean', '-f', str(cfg)],
            env=dict(os.environ, NO_MKDOCS_2_WARNING='1')).returncode

if __name__ == '__main__': sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/'_docs').resolve()))
