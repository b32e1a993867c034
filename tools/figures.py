"""What the code looks like, in figures: `python tools/figures.py [NOTEBOOK ...]`

Per notebook and for the whole: lines of exported cells, long lines, long modules, functions with many arguments,
private names that cross a module, public names, and how often the story shows a value."""
import ast, json, re, sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from repo import rows

WIDE = 120      # characters of a line in an exported cell
MANY = 8        # arguments of a function
# words that style is strict about; each use is a place to look
WORDS = r"\b(mend(?:s|ed|ing)?|so many|told|whoever|luck|visits?|pieces?|late|Here|inert)\b"

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def text(cell): return ''.join(cell['source'])
def is_exported(cell): return cell['cell_type'] == 'code' and bool(re.match(r'#\|\s*exports?\b', text(cell).lstrip()))
def module_file(path):
    return ROOT/'steve1'/path.relative_to(ROOT/'nbs').with_name(re.sub(r'^\d\d_', '', path.stem)+'.py')

def exported(path):
    "Lines of each exported cell, import cells left out"
    out = []
    for c in cells(path):
        if not is_exported(c): continue
        lines = [l for l in text(c).splitlines() if not l.startswith('#|')]
        if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse('\n'.join(lines)).body): continue
        out.append(lines)
    return out

def shows(cell):
    "Does a cell show a value or a picture, or assert something?"
    if cell['cell_type'] != 'code' or is_exported(cell): return False
    return bool(cell.get('outputs')) or bool(re.search(r'\b(assert|test_\w+\()', text(cell)))

def quantile(xs, q): return sorted(xs)[int(q*(len(xs)-1))] if xs else 0

def wide_functions(path):
    "Functions with more than MANY arguments, numba kernels left out"
    tree = ast.parse(module_file(path).read_text(encoding='utf-8'))
    for f in ast.walk(tree):
        if not isinstance(f, ast.FunctionDef) or any('jit' in ast.unparse(d) for d in f.decorator_list): continue
        n = len(f.args.posonlyargs + f.args.args + f.args.kwonlyargs)
        if n - (f.args.args[:1] != [] and f.args.args[0].arg in ('self', 'cls')) > MANY: yield f'{f.name}({n})'

def private_imports(path):
    "Private names taken from other modules"
    for n in ast.walk(ast.parse(module_file(path).read_text(encoding='utf-8'))):
        if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('steve1')):
            yield from (a.name for a in n.names if a.name.startswith('_') and not a.name.startswith('__'))

def public_names(path):
    for n in ast.parse(module_file(path).read_text(encoding='utf-8')).body:
        if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__': return ast.literal_eval(n.value)
    return []

def figures(path):
    "One notebook as a row"
    lengths, lines = [len(c) for c in exported(path)], [l for c in exported(path) for l in c]
    n_shown = sum(map(shows, cells(path)))
    return dict(median=quantile(lengths, .5), nine_in_ten=quantile(lengths, .9), longest=max(lengths, default=0),
        lines=len(lines),
        wide=sum(len(l) > WIDE for l in lines), module=len(module_file(path).read_text(encoding='utf-8').splitlines()),
        shown=round(n_shown/max(1, len(lengths)), 2), public=len(public_names(path)),
        words=sum(len(re.findall(WORDS, text(c))) for c in cells(path) if c['cell_type'] == 'markdown'),
        many=' '.join(wide_functions(path)), private=' '.join(private_imports(path)))

def whole(paths):
    "All notebooks together"
    lengths, lines = [len(c) for p in paths for c in exported(p)], [l for p in paths for c in exported(p) for l in c]
    names = defaultdict(list)
    for p in paths:
        for n in public_names(p): names[n].append(p.stem)
    return dict(median=quantile(lengths, .5), nine_in_ten=quantile(lengths, .9),
        wide=sum(len(l) > WIDE for l in lines)/max(1, len(lines)),
        long_modules={p.stem:n for p in paths if (n := figures(p)['module']) > 500},
            many={p.stem:f for p in paths if (f := list(wide_functions(p)))},
        private={p.stem:f for p in paths if (f := list(private_imports(p)))}, public=len(names),
            twice={n:ps for n,ps in names.items() if len(ps) > 1},
        story={p.stem:figures(p)['shown'] for p in paths if p.parent == ROOT/'nbs'})

if __name__ == '__main__':
    chosen = [p for p in rows() if not sys.argv[1:]
        or p.relative_to(ROOT/'nbs').with_suffix('').as_posix() in sys.argv[1:]]
    row = '{:<22}' + '{:>8}'*9 + '  {}'
    print(row.format('notebook', 'median', '9 in 10', 'longest', 'lines', 'wide', 'module', 'shown', 'public',
        'words', 'more than 8 arguments, private imports'))
    for p in chosen:
        print(row.format(p.relative_to(ROOT/'nbs').with_suffix('').as_posix(),
            *[v for k,v in figures(p).items() if k not in ('many','private')],
            f"{figures(p)['many']} {figures(p)['private']}".strip()))
    for k,v in whole(chosen).items(): print(f'{k:13}', f'{v:.2%}' if k == 'wide' else v)
