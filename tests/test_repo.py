"The repository keeps its promises: map, order, generated files, sizes, no trace of the machine it was made on"
import ast, builtins, json, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import repo

NOTEBOOKS = repo.notebooks()
ROWS = repo.rows() # the exporting notebooks, in the order of the index's table
PAPERMILL = ('05_train', '06_prior', '07_rollout', '08_evaluate')
MB = 1_000_000
by_name = dict(ids=lambda p: p.stem)

def load(path): return json.loads(path.read_text(encoding='utf-8'))
def source(cell): return ''.join(cell['source'])
def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']
def directives(cell): return set(re.findall(r'^#\|\s*(.+?)\s*$', source(cell), re.M))
def parameter_cells(nb): return [c for c in code_cells(nb) if 'parameters' in c['metadata'].get('tags', [])]

def module_of(path):
    "The name after `#| default_exp`"
    return next((d.split()[1] for c in code_cells(load(path)) for d in directives(c)
        if d.startswith('default_exp ')), None)

ORDER = {module_of(p):i for i,p in enumerate(ROWS)} # module -> its row

def path_of(module): return ROOT/'steve1'/f"{module.replace('.', '/')}.py"

def imports(module):
    "(steve1 modules, other packages) that a module imports, inside functions too"
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            near = f"steve1.{module}".split('.')[:-node.level] if node.level else []
            base = '.'.join([*near, *filter(None, [node.module])])
            names = [f'{base}.{a.name}' if f'{base}.{a.name}'.removeprefix('steve1.') in ORDER else base
                for a in node.names]
        else: continue
        for name in names:
            if name.startswith('steve1.'): ours.add(name.removeprefix('steve1.'))
            elif name != 'steve1': others.add(name.split('.')[0])
    return ours, others

def everything_below(module):
    "All steve1 modules that a module reaches"
    seen, todo = set(), [module]
    while todo:
        new = imports(todo.pop())[0] - seen
        seen |= new
        todo += new
    return seen

def tracked():
    "Files that git would carry: tracked or new and not ignored; without git, all but what is made"
    r = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode == 0 and r.stdout: paths = [ROOT/l for l in r.stdout.splitlines()]
    else:
        paths = [p for p in ROOT.rglob('*')
            if not re.search(r'(^|/)(\.venv|\.git|__pycache__|runs|datasets|cache)/|egg-info',
            p.relative_to(ROOT).as_posix())]
    return [p for p in paths if p.is_file()]

# --- notebooks and modules

def test_notebooks_and_modules_are_one_to_one():
    modules = {p.relative_to(ROOT/'steve1').with_suffix('').as_posix().replace('/', '.')
        for p in (ROOT/'steve1').rglob('*.py') if not p.stem.startswith('_')}
    assert set(ORDER) == modules
    assert len(ORDER) == len(ROWS)
    assert set(ROWS) == {p for p in NOTEBOOKS
        if module_of(p)}, "every exporting notebook has a row in the index's table, and no other"
    for p in ROWS:
        folder, name = p.relative_to(ROOT/'nbs').parent, re.sub(r'^\d\d_', '', p.stem)
        assert (folder/name).as_posix().replace('/', '.') == module_of(p), f'{p.name} exports {module_of(p)}'

def test_story_stands_on_the_ground_floor():
    assert [p.stem for p in sorted((ROOT/'nbs').glob('*.ipynb')) if p.stem != 'index'] == [p.stem
        for p in ROWS if p.parent == ROOT/'nbs']
    assert all(re.match(r'\d\d_', p.stem) for p in ROWS if p.parent == ROOT/'nbs')

def test_modules_and_notebooks_are_in_step():
    assert repo.out_of_step() == [], '`make export` mends this'

@pytest.mark.parametrize('module', ORDER)
def test_imports_point_up_the_table(module):
    ours, _ = imports(module)
    assert ours <= set(ORDER), f'{module} imports {ours - set(ORDER)}, which is no notebook'
    late = {m for m in ours if ORDER[m] >= ORDER[module]}
    assert not late, f'{module} imports {late}, which come later in the table'

@pytest.mark.parametrize('module', ORDER)
def test_launched_modules_come_earlier(module):
    "A module that starts another by its name or file depends on it, too"
    text = path_of(module).read_text(encoding='utf-8')
    named = {m for m in re.findall(r"['\"]steve1\.([\w.]+)(?::\w+)?['\"]", text) if m in ORDER} - {module}
    named |= {m for m in ORDER if re.search(r"files\('steve1'\)\s*/\s*'" + r"'\s*/\s*'".join([*m.split('.')[:-1],
        m.split('.')[-1]+r'\.py']) + "'", text)}
    late = {m for m in named if ORDER[m] >= ORDER[module]} - LAUNCHED.get(module, set())
    assert not late, f'{module} starts {late}, which come later in the table'

LAUNCHED = {'training.launch': {'train'}} # torchrun needs a module to run, and a run is `python -m steve1.train`

@pytest.mark.parametrize('module', [m for m in ORDER if m.startswith('world.') or m == 'base.actions'])
def test_no_torch_in(module):
    assert 'torch' not in imports(module)[1]
    code = f'import sys, steve1.{module}; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0, 'torch comes in by another module'

@pytest.mark.parametrize('module', ['mineclip', 'policy', 'train'])
def test_no_world_in(module):
    assert not {m for m in everything_below(module) if m.startswith('world.')}

@pytest.mark.parametrize('path', NOTEBOOKS, **by_name)
def test_notebook(path):
    nb = load(path)
    assert path.stat().st_size < 1.2*MB, 'a notebook stays near 1 MB'
    assert not repo.error_outputs(nb), 'saved with an error output'
    first = next(c for c in nb['cells'] if c['cell_type'] == 'markdown')
    assert source(first).startswith('# '), 'the first text cell is the title'
    widgets = [o for c in code_cells(nb) for o in c['outputs']
        if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})]
    assert not widgets, 'a saved widget (progress bar?) is an empty box for the reader'

# --- notebooks that papermill runs

@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.stem in PAPERMILL or parameter_cells(load(p))], **by_name)
def test_papermill_notebook(path):
    nb = load(path)
    cells = parameter_cells(nb)
    assert len(cells) == 1, 'exactly one cell tagged `parameters`'
    for line in source(cells[0]).splitlines():
        if not line.strip() or line.startswith('#'): continue
        node, = ast.parse(line).body
        assert isinstance(node,
            ast.AnnAssign) and node.value is not None, f'`name: type = literal  # comment`, not: {line}'
        ast.literal_eval(node.value)
        assert re.fullmatch(r'\s*#\s*\S.*', line[node.end_col_offset:]), f'no comment: {line}'
    for c in code_cells(nb):
        assert 'nbdev_export(' not in source(c), 'papermill would export in the middle of a run'
        assert not {'eval: false', 'eval:false'} & directives(c), 'papermill runs such a cell all the same'

# -> first line of its run
RUNS = {p:m[1] for p in NOTEBOOKS for c in code_cells(load(p)) if (m := re.search(r"^skip_lessons\(globals\(\), "
    r"'(.+)'\)", source(c), re.M))}

def names(code, context):
    "Names that some code reads (ast.Load) or binds (ast.Store), what only a test runs left out"
    class Names(ast.NodeVisitor):
        found = set()
        def visit_If(self, node):
            [self.visit(n) for n in ([] if ast.unparse(node.test).startswith('in_test()') else [node.test,
                *node.body]) + node.orelse]
        def visit_Name(self, node): self.found |= {node.id} if isinstance(node.ctx, context) else set()
        def visit_bound(self, node):
            self.found |= {node.name} if context is ast.Store else set()
            self.generic_visit(node)
        visit_FunctionDef = visit_ClassDef = visit_ExceptHandler = visit_bound
        def visit_arg(self, node): self.found |= {node.arg} if context is ast.Store else set()
        def visit_alias(self, node):
            self.found |= {(node.asname or node.name).split('.')[0]} if context is ast.Store else set()
    seen = Names()
    seen.found = set(); seen.visit(ast.parse(code))
    return seen.found

def test_four_notebooks_begin_with_their_parameters(): assert tuple(sorted(p.stem for p in RUNS)) == PAPERMILL

@pytest.mark.parametrize('path', RUNS, **by_name)
def test_run_does_without_the_lessons(path):
    "Papermill leaves out the cells between parameters and run: the run must not need them"
    cells = code_cells(load(path))
    first = next(i for i,c in enumerate(cells) if 'skip_lessons(globals()' in source(c))
    again = [i for i,c in enumerate(cells) if source(c).splitlines()[:1] == [RUNS[path]]]
    assert len(again) == 1 and again[0] > first, f'one cell begins with {RUNS[path]!r}'
    assert not [c for c in cells[:first]
        if 'export' in directives(c)], 'parameters are checked before the notebook imports'
    run = '\n'.join(source(c) for c in cells[:first+1] + cells[again[0]:])
    unknown = names(run, ast.Load) - names(run, ast.Store) - set(dir(builtins))
    assert not unknown, f'{unknown} come from cells that papermill leaves out'

# --- README, Makefile, packaging

def targets(): return set(re.findall(r'^(\w+):', (ROOT/'Makefile').read_text(), re.M))

def test_readme_is_in_step_with_index():
    text, images = repo.readme()
    assert (ROOT/'README.md').read_text() == text, '`make readme` mends this'
    for name,data in images.items(): assert (ROOT/'nbs'/'images'/name).read_bytes() == data

def test_folder_pages_are_in_step_with_index():
    pages = repo.folder_pages()
    assert {p.parent for p in pages} == {p.parent for p in ROWS} - {ROOT/'nbs'}
    for path,text in pages.items(): assert path.read_text() == text, '`make readme` writes them'

@pytest.mark.parametrize('name', ['README.md', 'README.zh-CN.md'])
def test_readme_links_and_commands(name):
    text = (ROOT/name).read_text()
    commands = set(re.findall(r'\bmake (\w+)', '\n'.join(re.findall(r'```.*?```|`[^`\n]+`', text, re.S))))
    assert {'demo', 'test'} <= commands <= targets()
    for url in re.findall(r'\]\(([^)#\s]+)', text):
        if not re.match(r'[a-z]+:', url): assert (ROOT/url).exists(), f'{name} links to {url}'

def test_readme_names_every_notebook():
    text = (ROOT/'README.md').read_text()
    assert [p for p in ROWS if f'({p.relative_to(ROOT).as_posix()})' not in text] == []

def settings():
    c = ConfigParser(delimiters=['='])
    c.read(ROOT/'settings.ini')
    return c['DEFAULT']

def test_every_import_is_required():
    from importlib.metadata import packages_distributions
    normal = lambda o: o.lower().replace('_', '-')
    wanted = {normal(re.match(r'[\w-]+', r)[0]) for k,v in settings().items() if k.endswith('requirements')
        for r in v.split()}
    found = packages_distributions()
    used = {o for m in ORDER for o in imports(m)[1]} - set(sys.stdlib_module_names)
    # an extra that is not installed goes by its import's name
    missing = {o for o in used if not wanted & set(map(normal, found.get(o, [o])))}
    assert not missing, f'settings.ini does not require {missing}'

def test_every_requirement_has_an_exact_version():
    wanted = {re.match(r'[\w-]+', r)[0] for k,v in settings().items() if k.endswith('requirements') for r in v.split()}
    pinned = set(re.findall(r'^([\w-]+)==', (ROOT/'constraints.txt').read_text(), re.M))
    assert wanted <= pinned, f'constraints.txt lacks {wanted - pinned}'

def test_console_scripts_exist():
    for s in settings().get('console_scripts', '').split():
        module, name = re.fullmatch(r'\w+=steve1\.([\w.]+):(\w+)', s).groups()
        assert re.search(rf'^(def|class) {name}\b|^{name} *=', path_of(module).read_text(), re.M), s

def test_ci_runs_the_tests():
    ci = ROOT/'.ci'/'run'
    assert 'make test' in ci.read_text() and ci.stat().st_mode & 0o100

# --- what is tracked

def test_no_trace_of_a_machine():
    names = 'home/\\w', 'root', 'Users/\\w', 'work', 'workspace'
    hosts = '.'.join(('pypi', 'org')), '.'.join(('registry', 'npmjs')), '.'.join(('deb', 'debian'))
    bad = re.compile(rf"(?<![\w.~>])/({'|'.join(names)})/|{re.escape(str(ROOT))}/|{'|'.join(map(re.escape, hosts))}")
    found = []
    for p in tracked():
        data = p.read_bytes()
        if b'\0' in data[:8192]: continue # not text
        for i,line in enumerate(data.decode('utf-8', 'replace').splitlines(), 1):
            if len(line) < 10_000 and bad.search(line): found.append(f'{p.relative_to(ROOT)}:{i}: {line.strip()[:100]}')
    assert not found, '\n'.join(found)

@pytest.mark.parametrize('folder,limit', [('data/weights', 60), ('data/episodes', 6), ('nbs/images', 3)])
def test_what_ships_is_small(folder, limit):
    for p in tracked():
        if p.is_relative_to(ROOT/'nbs'): assert p.stat().st_size < 1.2*MB, f'{p.name}: a page must load'
    size = sum(p.stat().st_size for p in tracked() if p.is_relative_to(ROOT/folder))
    assert size < limit*MB, f'{folder} holds {size/MB:.1f} MB'

@pytest.mark.parametrize('question', ['the sky is drawn', 'the goal enters the policy', 'an episode is written',
    'a stopped run resumes'])
def test_the_index_answers(question):
    "One row, which names the notebook and what to look for in it"
    rows = [l for l in source(load(ROOT/'nbs'/'index.ipynb')['cells'][3]).splitlines() if l.startswith('| ')
        and question in l]
    assert len(rows) == 1, rows
    path, name = re.search(r'\(([\w/]+)\.ipynb\)',
        rows[0])[1], re.search(rf'{question}\*\*[^|]*?`(?:\w+\.)?(\w+)`', rows[0])[1]
    assert re.search(rf'^(def|class) {name}\b',
        path_of(module_of(ROOT/'nbs'/f'{path}.ipynb')).read_text(encoding='utf-8'), re.M)

@pytest.mark.parametrize('path', [p for p in ROWS if p.parent == ROOT/'nbs'], **by_name)
def test_story_opens_in_colab(path):
    "A link that names this notebook, and an install cell that runs nowhere else"
    cells = load(path)['cells']
    assert f'https://colab.research.google.com/github/steve1/steve1/blob/main/nbs/{path.name})' in source(next(c
        for c in cells if c['cell_type'] == 'markdown'))
    install, = [c for c in cells if 'git clone' in source(c)]
    top = ast.parse(source(install)).body
    assert [type(n) for n in top] == [ast.Import,
        ast.If] and ast.unparse(top[1].test) == "'google.colab' in sys.modules"

def test_settings_of_others_can_be_read():
    "Workflows, issue forms, devcontainer, citation: what no run of ours reads"
    import yaml
    for p in [*(ROOT/'.github').rglob('*.yml'), ROOT/'CITATION.cff']:
        assert isinstance(yaml.safe_load(p.read_text(encoding='utf-8')), dict), p
    assert json.loads((ROOT/'.devcontainer'/'devcontainer.json').read_text())['postCreateCommand'] == 'make setup'
    for p in (ROOT/'.github'/'workflows').glob('*.yml'):
        flow = yaml.safe_load(p.read_text(encoding='utf-8'))
        # `on` reads as True
        assert flow[True] and all({'runs-on', 'steps'} <= job.keys() for job in flow['jobs'].values()), p
        steps = [s for job in flow['jobs'].values() for s in job['steps']]
        assert all(('run' in s) != ('uses' in s) for s in steps), p
        named = {n for s in steps for n in re.findall(r'run_all\.py (.+)', s.get('run', '')) for n in n.split()}
        assert named <= {q.stem for q in NOTEBOOKS} | {q.stem for q in (ROOT/'tests').glob('test_*.py')}, named
        assert {m for s in steps for m in re.findall(r'\bmake (\w+)', s.get('run', ''))} <= targets()

def test_ruff_is_content():
    "Tests and tools hold no unused names, no mutable defaults, no errors that a linter sees"
    r = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', '.'],
        cwd=ROOT, capture_output=True, text=True)
    assert (
        r.returncode == 0
    ), f'{r.stdout[-3000:]}{r.stderr}\n`{Path(sys.executable).name} -m ruff check --fix` repairs most'
