"Keep notebooks, modules and README in step: repo.py check | readme | pre-commit"
import json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
IMAGES = NBS/'images'
HEADER = '<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n'

def notebooks(root=ROOT):
    "All notebooks"
    return sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(o.startswith(('.', '_'))
        for o in p.relative_to(root).parts))

def rows(root=ROOT):
    "The notebooks that export a module, in the order of the index's table: each imports only from earlier rows"
    text = ''.join(s for c in json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
        for s in c['source'])
    found = re.findall(r'^\| (?:\*\*|· )\[([\w/]+)\]\(\1\.ipynb\)', text, re.M)
    return [root/'nbs'/f'{p}.ipynb' for p in found]

def folder_pages(root=ROOT):
    "{README.md of a folder of side rooms: its text}, from the index's list of folders and its table"
    text = '\n'.join(''.join(c['source'])
        for c in json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells'])
    pages = {}
    for folder,about in re.findall(r'^- \*\*(\w+)/\*\*: (.+)$', text, re.M):
        table = re.findall(rf'^\| · \[{folder}/(\w+)\]\([\w/]+\.ipynb\) \| (.+) \|$', text, re.M)
        lines = [f'| [{name}]({name}.ipynb) | {what} |' for name,what in table]
        pages[root/'nbs'/folder/'README.md'] = '\n'.join([HEADER.strip(), '', f'# {folder}', '',
            about[0].upper()+about[1:], '',
            f'Exported as `steve1.{folder}`. [All notebooks](../index.ipynb) in reading order.', '',
                '| notebook | what you find there |', '|---|---|', *lines, ''])
    return pages

def out_of_step():
    "Paths that a fresh export and clean would change, found in a copy: nothing here is touched"
    env = {k:v for k,v in os.environ.items() if k != 'IN_TEST'} # with it nbdev_export does nothing
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/ROOT.name
        copy.mkdir()
        shutil.copy(ROOT/'settings.ini', copy)
        skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.pyc', 'images')
        for d in ('nbs', 'steve1'): shutil.copytree(ROOT/d, copy/d, ignore=skip)
        before = {p:p.read_bytes() for p in copy.rglob('*') if p.is_file()}
        for p in (copy/'steve1').rglob('*.py'): # a module whose notebook is gone must not survive
            if p.name != '__init__.py': p.unlink()
        code = 'from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()'
        subprocess.run([sys.executable, '-c', code], cwd=copy, env=env, check=True, capture_output=True, text=True)
        after = {p:p.read_bytes() for p in copy.rglob('*') if p.is_file() and '__pycache__' not in p.parts}
        return sorted(str(p.relative_to(copy)) for p in before.keys()|after.keys() if before.get(p) != after.get(p))

def _link(m):
    "A link of nbs/index.ipynb as seen from the repository's root"
    url = m[2]
    if re.match(r'[a-z]+:|#|/', url): return m[0]
    return f"{m[1]}({url[3:] if url.startswith('../') else 'nbs/'+url})"

def readme():
    "(README.md's text, {file name below nbs/images: bytes}) from nbs/index.ipynb"
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(NBS/'index.ipynb', 4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\s*$', c.source, re.M)]
    for c in nb.cells:
        if c.cell_type == 'code': c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
    text, resources = MarkdownExporter().from_notebook_node(nb)
    images = {}
    for name,data in resources.get('outputs', {}).items():
        new = 'index_'+name.removeprefix('output_')
        images[new] = data
        text = text.replace(f']({name})', f'](images/{new})')
    text = re.sub(r'(\])\(([^)\s]+)\)', _link, text)
    return HEADER + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', images

def write_readme():
    text, images = readme()
    (ROOT/'README.md').write_text(text)
    for path,page in folder_pages().items(): path.write_text(page)
    if images: IMAGES.mkdir(exist_ok=True)
    for name,data in images.items(): (IMAGES/name).write_bytes(data)

def error_outputs(nb):
    "Indices of cells that were saved with an error"
    return [i for i,c in enumerate(nb['cells']) for o in c.get('outputs', []) if o.get('output_type') == 'error']

def pre_commit():
    "Complaints about the notebooks as staged"
    def git(*a): return subprocess.run(['git', *a], cwd=ROOT, capture_output=True, text=True).stdout
    wrong = []
    for p in git('diff', '--cached', '--name-only', '--diff-filter=ACM', '--', 'nbs').splitlines():
        if not p.endswith('.ipynb'): continue
        try: nb = json.loads(git('show', f':{p}'))
        except ValueError:
            wrong.append(f'{p} is not valid JSON (a merge conflict?): nbdev_fix {p}')
            continue
        if error_outputs(nb): wrong.append(f'{p} is saved with an error output: run it again')
        if any(c.get('metadata', {}).keys() - {'tags'} for c in nb['cells']):
            wrong.append(f'{p} is not clean: make export')
    return wrong

if __name__ == '__main__':
    cmd = sys.argv[1] if len(sys.argv) == 2 else ''
    if cmd == 'readme': write_readme()
    elif cmd in ('check', 'pre-commit'):
        wrong = pre_commit() if cmd == 'pre-commit' else [f'{p} is out of step: make export' for p in out_of_step()]
        if wrong: sys.exit('\n'.join(wrong))
    else: sys.exit(__doc__)
