"""Files that are cut, bent, hostile or something else: every loader says so, gives nothing, and needs no memory to find out."""
import collections, importlib.util, io, json, os, pickle, pickletools, random, resource, struct, zipfile
from pathlib import Path
import numpy as np
import pytest
import torch
from steve1.base.untrusted import safe_pickle_load, safe_torch_load
from steve1.base.checkpoints import (
    checkpoint_kind,
    load_tensors,
    read_checkpoint,
    read_meta,
    read_official,
    save_tensors,
)
from steve1.models.tokenizers import ClipTokenizer

GOLDEN = Path(__file__).parent/'golden'
CLEAR = (ValueError, FileNotFoundError, IsADirectoryError)

@pytest.fixture
def good(tmp_path):
    "One sound file a format, and its loader"
    state = collections.OrderedDict((f'net.layer{i}.weight', torch.randn(8, 16)) for i in range(4))
    state['half'], state['flag'], state['steps'] = torch.randn(7).half(), torch.tensor([True, False]), torch.tensor(3)
    torch.save(dict(state_dict=state, size=torch.Size([2,3]), rng=torch.get_rng_state(), kind=torch.float16,
        epoch=1), tmp_path/'zip.pt')
    torch.save(dict(state), tmp_path/'legacy.pt', _use_new_zipfile_serialization=False)
    save_tensors(tmp_path/'ours.safetensors', state, dict(kind='policy', config=dict(width=3)))
    data = [dict(attack=np.array(1), camera=np.random.randn(1, 2).astype(np.float32), name='x', tags={1, 2})
        for _ in range(20)]
    for p in (2, 4, 5): (tmp_path/f'data{p}.pkl').write_bytes(pickle.dumps(data, p))
    return {'zip.pt':safe_torch_load, 'legacy.pt':safe_torch_load, 'ours.safetensors':load_tensors,
        **{f'data{p}.pkl':safe_pickle_load for p in (2, 4, 5)}}

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

def small(f, grows=200 << 20):
    "f() in a child process that may hardly grow; what it returned, or the error that it raised"
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = peak()
        held = next(int(l.split()[1]) << 10 for l in open('/proc/self/status') if l.startswith('VmData'))
        # what is asked for, even if it is never touched
        resource.setrlimit(resource.RLIMIT_DATA, (held + 4*grows,)*2)
        try: out = 'gave', type(f()).__name__
        except CLEAR as e: out = type(e).__name__, str(e)
        except BaseException as e: out = 'unclear', f'{type(e).__name__}: {e}'
        os.write(w, json.dumps([*out, peak() - before]).encode())
        os._exit(0)
    os.close(w)
    with open(r) as p: kind, text, grew = json.loads(p.read() or '["unclear", "it died", 0]')
    os.waitpid(pid, 0)
    assert grew < grows, f'{grew >> 20} MB: {text}'
    return kind, text

def refused(f, *words, exc='ValueError'):
    kind, text = small(f)
    assert kind == exc, (kind, text)
    for w in words: assert w in text, text

def test_cut(tmp_path, good):
    "Every file, cut anywhere, is refused with its name"
    for name,load in good.items():
        data = (tmp_path/name).read_bytes()
        load(tmp_path/name)
        for n in sorted({0, 1, 2, 7, 8, 9, 16, len(data) - 1, *random.Random(0).sample(range(len(data)), 40)}):
            (tmp_path/'cut').write_bytes(data[:n])
            with pytest.raises(ValueError, match='cut'): load(tmp_path/'cut')

def same(a, b):
    if isinstance(a, dict): return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    return a == b

def test_flipped(tmp_path, good):
    "A flipped bit gives a clear error or a whole object; in a zip of torch.save, where there are checksums, never other weights"
    rng, caught = random.Random(1), collections.Counter()
    for name,load in good.items():
        data = (tmp_path/name).read_bytes()
        whole = load(tmp_path/name)
        for _ in range(150):
            bent = bytearray(data)
            bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
            (tmp_path/'bent').write_bytes(bent)
            try: got = load(tmp_path/'bent')
            except ValueError as e:
                assert 'bent' in str(e); caught[name] += 1
            else: assert type(got) is type(whole) and (name != 'zip.pt' or same(got, whole))
    assert all(caught[n] for n in good), caught

def test_something_else(tmp_path, good):
    "Each loader meets each other format, text, a folder, nothing"
    (tmp_path/'text').write_text('weights? no.')
    (tmp_path/'empty').write_bytes(b'')
    (tmp_path/'page').write_text('\n<!DOCTYPE html><html>')
    (tmp_path/'lfs').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n')
    (tmp_path/'noise').write_bytes(random.Random(0).randbytes(5000))
    for load in set(good.values()) | {read_meta}:
        for name in ('text', 'empty', 'page', 'lfs', 'noise',
            *(n for n,l in good.items() if l is not load and not (load is read_meta and l is load_tensors))):
            with pytest.raises(ValueError, match=name): load(tmp_path/name)
        with pytest.raises(IsADirectoryError, match='is a folder'): load(tmp_path)
        with pytest.raises(FileNotFoundError, match='nowhere'): load(tmp_path/'nowhere')
    with pytest.raises(ValueError, match='web page'): safe_torch_load(tmp_path/'page')
    with pytest.raises(ValueError, match='git lfs pull'): load_tensors(tmp_path/'lfs')
    with pytest.raises(ValueError, match='file of torch.save'): load_tensors(tmp_path/'zip.pt')
    with pytest.raises(ValueError, match='safetensors file'): safe_torch_load(tmp_path/'ours.safetensors')

def test_five_gigabytes_of_nothing(tmp_path, good):
    "A sparse file of 5 GB, all zeros or with the head of a sound one, is refused without reading it"
    heads = [(b'', load) for load in set(good.values())] + [((tmp_path/n).read_bytes(), load)
        for n,load in good.items()]
    heads += [(pickle.dumps(0x1950a86a20f9469cfc6c, 2)[:-1] + b'c', safe_torch_load),
        (b'\x80\x02c', safe_pickle_load), (b'\x80\x04B\xff\xff\xff\x7f', safe_pickle_load),
              (struct.pack('<Q', 5 << 30), load_tensors), (b'PK\3\4', safe_torch_load)]
    for head,load in heads:
        with open(tmp_path/'vast', 'wb') as f:
            f.write(head); f.truncate(5 << 30)
        # whole, with zeros behind its end
        if head == (tmp_path/'legacy.pt').read_bytes():
            assert small(lambda: load(tmp_path/'vast'))[0] in ('gave', 'ValueError')
        else: refused(lambda: load(tmp_path/'vast'), 'vast')
    with open(tmp_path/'vast', 'r+b') as f: # a list of contents that is as long as the file
        f.write(b'PK\3\4')
        f.truncate((4 << 30) - 100)
        f.seek(0, 2)
        f.write(struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 1, 1, (4 << 30) - 200, 50, 0))
    refused(lambda: safe_torch_load(tmp_path/'vast'), 'vast')
    for load in (safe_pickle_load,):
        with open(tmp_path/'vast', 'wb') as f:
            f.write(b'\x80\x02c')
            f.truncate(500 << 20) # below the limit: a name without an end
        refused(lambda: load(tmp_path/'vast'), 'vast')

class Asks:
    def __init__(self, f, *args): self.ask = f, args
    def __reduce__(self): return self.ask

class Fills(Asks):
    "Asks for something and fills it with a state"
    def __init__(self, state, f, *args): self.ask = f, args, state

_new = np._core.multiarray._reconstruct, np.ndarray, (0,), b'b'
f8 = np.dtype('f8')
GREEDY = dict(bytearray=Asks(bytearray, 10**12), bytes=Asks(bytes, 10**12), range=Asks(list, range(10**10)),
    array=Asks(np.ndarray, (10**12,)), zeros=Asks(np.zeros, 10**12),
    shape=Fills((1, (10**12,), f8, False, b'x'), *_new), objects=Fills((1, (10**11,), np.dtype('O'), False, [0]),
        *_new), no_bytes=Fills((1, (10**18,), f8, False, b''), *_new),
    reconstruct=Asks(np._core.multiarray._reconstruct, np.ndarray, (10**12,), b'b'),
        format=Fills((3, '<', None, None, None, 1 << 40, 4, 0), np.dtype, 'f8', False, True),
    flags=Fills((3, '|', None, None, None, 8, 1, 63), np.dtype, 'S8', False, True),
        scalar=Asks(np._core.multiarray.scalar, np.dtype('S9'), b'123'),
    frombuffer=Asks(np._core.numeric._frombuffer, b'12345678', f8, (10**12,), 'C'), call=Asks(os.system, 'true'),
        getattr=Asks(getattr, [], '__class__'), text=Asks(str, [[]]))

def test_greedy_pickles(tmp_path):
    "Asking for a terabyte, in every way that an allowed name offers, is refused by name"
    for name,ask in GREEDY.items():
        for protocol in (2, 4):
            (tmp_path/f'{name}.pkl').write_bytes(pickle.dumps(ask, protocol))
            refused(lambda: safe_pickle_load(tmp_path/f'{name}.pkl'), name, 'cannot be read as data alone')
    refused(lambda: safe_pickle_load(tmp_path/'call.pkl'), 'it wants posix.system')
    refused(lambda: safe_pickle_load(tmp_path/'getattr.pkl'), 'getattr')

def test_small_file_large_object(tmp_path):
    "Copies of copies, a memo full of holes, lengths that lie: what is made is counted against the file"
    text, items = b'X' + struct.pack('<I', 1 << 20) + b'a'*(1 << 20), b'](' + b'N'*(1 << 18) + b'e'
    encode = b'c_codecs\nencode\n'
    programs = dict(encodes=b'\x80\x02' + text + b'q\0' + encode + b'q\1' + b'h\1h\0\x85R'*5000 + b'.',
        sets=b'\x80\x02' + items + b'q\0c__builtin__\nlist\nq\1' + b'h\1h\0\x85R'*50000 + b'.',
        memo=b'\x80\x02Nr\xff\xff\xff\x7f.', bytes8=b'\x80\x04\x8e' + struct.pack('<Q', 1 << 40) + b'x.',
            bytearray8=b'\x80\x05\x96' + struct.pack('<Q', 1 << 34) + b'x.',
            frame=b'\x80\x04\x95' + struct.pack('<Q', 1 << 40) + b'N.',
        long4=b'\x80\x02\x8b\xff\xff\xff\x7f1.', digits=b'I' + b'9'*100_000 + b'\n.', persid=b'Px\n.',
            ext=b'\x80\x02\x82\1.', inst=b'(ios\nsystem\n.', attributes=b'\x80\x02c_codecs\nencode\n}X\1\0\0\0aNsb.')
    # shown in an error, it would have 10**30 characters
    laughs = b'](' + b'N'*10 + b'e' + b''.join(b'q%c](' % i + b'h%c' % i*10 + b'e' for i in range(30))
    programs['laughs'] = b'\x80\x02c__builtin__\nbytes\n' + laughs + b'\x85R.'
    for name,code in programs.items():
        (tmp_path/f'{name}.pkl').write_bytes(code)
        kind, what = small(lambda: safe_pickle_load(tmp_path/f'{name}.pkl'))
        assert kind == 'ValueError' and name in what or (name, kind) == ('memo', 'gave'), (name, kind, what)
    (tmp_path/'deep.pkl').write_bytes(b'\x80\x02' + b']'*300_000 + b'a'*299_999 + b'.')
    assert small(lambda: safe_pickle_load(tmp_path/'deep.pkl'))[0] in ('gave', 'ValueError')
    # to hash this key would end the process
    (tmp_path/'hash.pkl').write_bytes(b'\x80\x02}' + b')' + b'\x85'*300_000 + b'Ns.')
    refused(lambda: safe_pickle_load(tmp_path/'hash.pkl'), 'hash.pkl', 'tuples within tuples')
    # and this one would take years
    (tmp_path/'twice.pkl').write_bytes(b'\x80\x02}' + b')\x85' + b'2\x86'*60 + b'Ns.')
    refused(lambda: safe_pickle_load(tmp_path/'twice.pkl'), 'tuples within tuples')

def test_programs_that_no_pickler_writes(tmp_path):
    "Names that are changed behind their back, objects numbered twice, deep keys by every detour: refused before anything runs"
    deep, key = b')' + b'\x85'*50_000, b'tuples within tuples'
    dtype = b'cnumpy\ndtype\nX\2\0\0\0f8\x89\x88\x87R'
    flags = b'(K\3X\1\0\0\0<NNNK\x08K\x08K\x3ftb'
    programs = dict(
        function_state=(b'\x80\x02c_codecs\nencode\n}X\7\0\0\0__doc__Nsb.', b'behind its back'),
        slots=(b'\x80\x02ccollections\nOrderedDict\n)RN}X\5\0\0\0itemsNs\x86b.', b'behind its back'),
        dict_state=(b'\x80\x02ccollections\nOrderedDict\n)R}X\5\0\0\0itemsNsb.', b'behind its back'),
        dtype_flags=(b'\x80\x02' + dtype + flags + b'.', b'number format'),
        array_of_pointers=(
            b'\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R(K\1K\1\x85'
            + dtype
            + flags
            + b'\x89C\x08AAAAAAAAtb.',
            b'number format',
        ),
        new_array=(b'\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x81.', b''),
        new_list=(b'\x80\x02cbuiltins\nlist\n)\x81.', b''),
        copyreg=(b'\x80\x02ccopy_reg\n_reconstructor\n.', b'could run code'),
        stack_global=(b'\x80\x04\x8c\2os\x8c\6system\x93.', b'could run code'),
        dotted=(b'\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.', b'could run code'),
        twice=(b'\x80\x02Nq\5)\x85\x85q\5.', b'out of turn'),
        two_ways=(b'\x80\x04Nq\5N\x94.', b'two ways'),
        negative=(b'\x80\x02Np-1\n.', b''),
        in_set=(b'\x80\x04\x8f(' + deep + b'\x90.', key),
        in_frozenset=(b'\x80\x04(' + deep + b'\x91.', key),
        in_dict=(b'\x80\x02(' + deep + b'Nd.', key),
        in_items=(b'\x80\x02}(' + deep + b'Nu.', key),
        by_memo=(b'\x80\x02}' + deep + b'q\0' + b'0h\0Ns.', key),
        by_dup=(b'\x80\x02}' + deep + b'20Ns.', key),
        by_call=(b'\x80\x02c__builtin__\nset\n](' + deep + b'e\x85R.', key),
        by_tuple=(b'\x80\x02}c__builtin__\ntuple\n](' + deep + b'e\x85RNs.', key),
        by_mapping=(b'\x80\x02c__builtin__\ndict\n](' + deep + b'N\x86e\x85R.', key),
        underflow=(b'\x80\x020000.', b'do not fit'),
        no_mark=(b'\x80\x02Nt.', b'do not fit'),
        persid=(b'\x80\x02NQ.', b''),
        nothing=(b'\x80\x02.', b''),
    )
    for name,(code,why) in programs.items():
        (tmp_path/f'{name}.pkl').write_bytes(code)
        refused(lambda: safe_pickle_load(tmp_path/f'{name}.pkl'), name, why.decode())
    # an array that is recognised as one step: its numbers count, too
    for protocol in (2, 4, 5):
        code = pickle.dumps([*map(str, range(300)), *map(np.array, range(9))], protocol)
        n = len([op for op,_,_ in pickletools.genops(code) if op.name in ('MEMOIZE', 'BINPUT', 'LONG_BINPUT')])
        (tmp_path/'hidden.pkl').write_bytes(code[:-2] + b'}j' + struct.pack('<I',
            n - (2 if protocol == 5 else 1)) + b'Nse.')
        refused(lambda: safe_pickle_load(tmp_path/'hidden.pkl'), 'hidden', key.decode())

def test_mutated_programs(tmp_path):
    "Instructions put in, taken out and swapped at random: an error or data, never the end of the process"
    def many():
        rng, data = random.Random(3), [pickle.dumps([dict(a=np.array(1), b=(1, 'x'), c={1, 2}, d=np.arange(3.)),
            (np.float32(2), b'xy')]*2, p) for p in (0, 2, 4, 5)]
        opcodes = bytes(ord(o.code) for o in pickletools.opcodes)
        for i in range(3000):
            bent = bytearray(rng.choice(data))
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(bent))
                bent[at:at+rng.randrange(3)] = bytes(rng.choice(opcodes) for _ in range(rng.randrange(3)))
            (tmp_path/'bent.pkl').write_bytes(bent)
            try: safe_pickle_load(tmp_path/'bent.pkl')
            except ValueError as e: assert 'bent.pkl' in str(e)
        return []
    assert small(many) == ('gave', 'list')

def torch_zip(path, description, storages=None, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', kind) as z:
        z.writestr('archive/data.pkl', description)
        z.writestr('archive/version', '3\n')
        z.writestr('archive/byteorder', 'little')
        for k,v in (storages or {}).items(): z.writestr(f'archive/data/{k}', v)

def test_greedy_torch_files(tmp_path):
    "What weights_only lets through: storages from nothing, lengths that lie, archives that inflate"
    tensor = lambda n, key=b'0', size=b'K\x04', stride=b'K\x01': (
        b'\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0'
        + key
        + b'X\3\0\0\0cpu'
        + n
        + b'tQK\0'
        + size
        + b'\x85'
        + stride
        + b'\x85\x89ccollections\nOrderedDict\n)RtRs.'
    )
    big = b'\x8a\x06' + (10**12).to_bytes(6, 'little')
    torch_zip(tmp_path/'sound.pt', tensor(b'K\x04'), {'0':bytes(16)})
    assert safe_torch_load(tmp_path/'sound.pt')['w'].shape == (4,)
    cases = dict(claims=(tensor(big), {'0':bytes(16)}), missing=(tensor(b'K\x04', b'1'), {'0':bytes(16)}),
        beyond=(tensor(b'K\x04', size=b'K\x05'), {'0':bytes(16)}),
        stretched=(tensor(b'K\x04', size=big, stride=b'K\0'), {'0':bytes(16)}),
            makes=(b'\x80\x02ctorch\nFloatStorage\n' + big + b'\x85R.', {}),
            tensor=(b'\x80\x02ctorch\nFloatTensor\n' + big + b'\x85R.', {}),
        untyped=(b'\x80\x02ctorch.storage\nUntypedStorage\n' + big + b'\x85R.', {}),
            bytearray=(b'\x80\x02c__builtin__\nbytearray\n' + big + b'\x85R.', {}),
            system=(b'\x80\x02cposix\nsystem\nX\4\0\0\0true\x85R.', {}))
    for name,(code,storages) in cases.items():
        torch_zip(tmp_path/f'{name}.pt', code, storages)
        refused(lambda: safe_torch_load(tmp_path/f'{name}.pt'), name, 'cannot be read as weights alone')
    refused(lambda: safe_torch_load(tmp_path/'system.pt'), 'posix.system')
    torch_zip(tmp_path/'bomb.pt', tensor(b'K\x04'), {'0':bytes(16), '1':bytes(1 << 28)}, zipfile.ZIP_DEFLATED)
    assert (tmp_path/'bomb.pt').stat().st_size < 1 << 20
    refused(lambda: safe_torch_load(tmp_path/'bomb.pt'), 'bomb', 'compressed')
    with zipfile.ZipFile(tmp_path/'other.pt', 'w') as z: z.writestr('readme.txt', 'hello')
    refused(lambda: safe_torch_load(tmp_path/'other.pt'), 'torch.save did not write')
    legacy = io.BytesIO()
    torch.save({'w':torch.zeros(4)}, legacy, _use_new_zipfile_serialization=False)
    (tmp_path/'legacy.pt').write_bytes(legacy.getvalue().replace(b'cpuq', b'cpuq', 1).replace(b'K\x04Ntq',
        b'J\xff\xff\xff\x7fNtq'))
    refused(lambda: safe_torch_load(tmp_path/'legacy.pt'), 'legacy')

def test_what_torch_saves_is_read(tmp_path):
    "The stand-ins know what weights and training states are made of: parameters, views, optimisers, number formats, both file formats"
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    opt = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 4)).sum().backward(); opt.step()
    base = torch.arange(12.).reshape(3, 4)
    for x in (net.state_dict(), dict(net.named_parameters()), opt.state_dict(), dict(view=base[1:, ::2], t=base.T,
        both=base), [1, 2.5, None, 'x', (True,), {'a':{3}}, 1j, bytearray(b'ab'), b'xy'],
              {str(d):torch.ones(3).to(d) for d in (torch.float64, torch.bfloat16, torch.float16, torch.int64,
                  torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)},
              dict(dtype=torch.bfloat16, size=torch.Size([1,2]), device=torch.device('cpu'),
                  none=torch.zeros(0, 3), scalar=torch.tensor(2.))):
        for new in (True, False):
            torch.save(x, tmp_path/'x.pt', _use_new_zipfile_serialization=new)
            got = safe_torch_load(tmp_path/'x.pt')
            assert same(dict(got) if isinstance(got, dict) else got, dict(x) if isinstance(x, dict) else x)

def test_stubs(tmp_path):
    "Objects of a package that is not wanted become records; nothing of it is imported"
    code = b'\x80\x03}X\5\0\0\0extracgym3.types\nDiscrete\n)\x81}X\1\0\0\0nK\x05sbs.'
    (tmp_path/'2x.model').write_bytes(code)
    got = safe_pickle_load(tmp_path/'2x.model', stubs=("gym3",))['extra']
    assert type(got).__name__ == 'PickleStub' and got.name == 'gym3.types.Discrete' and got.state == {'n':5}
    with pytest.raises(ValueError, match='it wants gym3.types.Discrete'): safe_pickle_load(tmp_path/'2x.model')

KEYS = dict(policy=('policy_keys_2x.json', lambda d: [t['key'] for t in d['configs'][0]['tensors']]),
    vpt=('minestudio_steve1_keys.json', lambda d: [r[0] for r in d['vpt']]),
    mineclip=('mineclip_keys.json', lambda d: [k for k,_ in d['tensors']]), prior=('prior_keys.json',
        lambda d: [k for k,_ in d['full']['tensors']]),
    idm=('idm_keys.json', lambda d: [t['key'] for t in d['configs'][0]['tensors']]),
        minestudio=('minestudio_steve1_keys.json', lambda d: [r[0] for r in d['steve1']]))

@pytest.mark.parametrize('kind', KEYS)
def test_kind_of_published_keys(kind, tmp_path):
    "The key lists of the published files, behind every prefix, give their kind and are refused elsewhere"
    file, pick = KEYS[kind]
    keys = pick(json.loads((GOLDEN/file).read_text()))
    assert len(keys) > 10
    for prefix in ('', 'module.policy.', 'policy.', 'model.', 'module.'):
        assert checkpoint_kind([prefix + k for k in keys]) == kind
    state = {k:torch.zeros(1) for k in keys}
    assert checkpoint_kind({'state_dict':state}) == kind
    torch.save(dict(state_dict=state), tmp_path/'x.pt')
    for want in ('policy', 'mineclip', 'prior', 'idm'):
        if want == kind or (want, kind) == ('policy', 'vpt'):
            assert len(read_official(tmp_path/'x.pt', want)) == len(keys)
        else:
            with pytest.raises(ValueError, match='x.pt holds .*is expected'): read_official(tmp_path/'x.pt', want)
            with pytest.raises(ValueError, match='x.pt holds .*is expected'): read_checkpoint(tmp_path/'x.pt', want)

# --- tables and settings

def table(header, rows=b''):
    header += ' '*(-(11+len(header)) % 64)+'\n'
    return b'\x93NUMPY\1\0'+struct.pack('<H', len(header))+header.encode()+rows

@pytest.mark.parametrize('header', ["{'descr': '<f2', 'fortran_order': False, 'shape': ((20,8), }",
    "{'descr': '<f2', 'fortran_order': False, 'shape': (20,8) if", '{', "{'descr': '|O', 'fortran_order': False, "
    "'shape': (20,8), }",
    "{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999,8), }",
        "{'descr': [('x','|O')], 'fortran_order': False, 'shape': (20,), }"])
def test_headers_of_tables(tmp_path, header, monkeypatch):
    "NumPy reads a header with Python's own parser: whatever that raises, the error names the file; a cache is made anew"
    from types import SimpleNamespace
    from steve1.base.remote import EpisodeFolder
    from steve1.data.moments import load_moment
    from steve1.training.features import _is_whole
    (path := tmp_path/'embeds.npy').write_bytes(table(header, bytes(320)))
    for read in (EpisodeFolder.map_table, lambda p: load_moment(str(p), 8)):
        with pytest.raises(ValueError, match='embeds.npy'): read(path)
    with pytest.warns(UserWarning, match='embeds.npy.*computed anew'): assert not _is_whole(path, SimpleNamespace(n=20))

def test_a_cache_that_cannot_be_opened_is_kept(tmp_path, monkeypatch):
    "Too many open files is no damage"
    from types import SimpleNamespace
    from steve1.training.features import _is_whole
    np.save(path := tmp_path/'features.npy', np.zeros((20,8), np.float16))
    assert _is_whole(path, SimpleNamespace(n=20))
    def refuse(*a, **kw): raise OSError(24, 'Too many open files', str(path))
    monkeypatch.setattr(np, 'load', refuse)
    with pytest.raises(OSError, match='Too many'): _is_whole(path, SimpleNamespace(n=20))
    assert path.exists()

def test_a_checksum_is_no_path(tmp_path):
    "What metadata.json states instead of a checksum does not become part of a file's name"
    from types import SimpleNamespace
    from steve1.training.features import _features_path
    (tmp_path/'frames.mp4').write_bytes(b'x')
    folder = SimpleNamespace(file=lambda name: tmp_path/name)
    for stated in ('/../../../../x', '', None, 7, ['a'], 'a'*64):
        ep = SimpleNamespace(path=tmp_path/'ep', folder=folder, meta=dict(files={'frames.mp4':stated}))
        assert _features_path(tmp_path/'cache', ep).parent == tmp_path/'cache'
    assert _features_path(tmp_path, SimpleNamespace(path=tmp_path/'ep', folder=folder,
        meta=dict(files={}))).name.startswith('ep-2d711642b726b044')

@pytest.mark.parametrize('settings', [None, [], 'lr', 3, {'tasks':[{}]}, {'tasks':[['dig']]}, {'baselines':[1]}])
def test_settings_of_a_wrong_kind(settings):
    "Settings that are no dictionary, and items of a list that are of another kind, name the config"
    from steve1.evaluate import EvalConfig
    with pytest.raises((TypeError, ValueError), match='EvalConfig'): EvalConfig.from_dict(settings)
    with pytest.raises(ValueError, match='EvalConfig has no preset'): EvalConfig.preset({})

def test_lists_and_notes_that_are_damaged(tmp_path, monkeypatch):
    "Every small text file that is read names itself, whatever stands in it"
    from steve1.acting.statistics import read_rows
    from steve1.base.commands import parse_config
    from steve1.data.collect import CollectConfig, IndexEntry, Ledger, _check_conversion
    from steve1.data.importing import _check_same, _known
    from steve1.data.recordings import RecordingConfig
    from steve1.data.sampling import read_sampling
    from steve1.evaluate import read_seeds
    from steve1.training.recipe import TrainConfig
    from steve1.training.runs import RunFolder
    monkeypatch.setenv('STEVE1_DATA', str(tmp_path))
    (run := tmp_path/'runs'/'r').mkdir(parents=True)
    (made := tmp_path/'datasets'/'d'/'e0').mkdir(parents=True)
    (tmp_path/'samplings').mkdir()
    (tmp_path/'samplings'/'s_val.txt').write_text('')
    cfg, entry = TrainConfig.preset('tiny'), IndexEntry('e0', 'http://x/e0', '')
    readers = {'seeds.txt':read_seeds, 'rows.csv':lambda: read_rows(tmp_path/'rows.csv'),
        'samplings/s_train.txt':lambda: read_sampling('s'),
        'datasets/d/recordings.jsonl':lambda: _known(tmp_path/'datasets'/'d'/'recordings.jsonl'),
            'runs/r/config.yaml':lambda: RunFolder('r').check_unused(cfg),
        'datasets/d/e0/metadata.json':lambda: [f() for f in (lambda: _check_same(made.parent, RecordingConfig()),
            lambda: _check_conversion(made.parent, CollectConfig()),
            lambda: Ledger.of('d').report([entry]))], 'cfg.yaml':lambda: parse_config(TrainConfig,
                ['--config', str(tmp_path/'cfg.yaml')])}
    for content in (b'\xff\xfe\x00', b'{"lrx": 1}', b'['*3000, b'[1, 2]', b'"x', b'a\0b\n', b'x'*70_000,
        b'memory://nowhere/x\n'):
        for name,read in readers.items():
            (tmp_path/name).write_bytes(content)
            with pytest.raises((ValueError, OSError), match=Path(name).name) as e: read()
            assert not isinstance(e.value, UnicodeError)
            if name.endswith('json'): made.joinpath('metadata.json').unlink()
        # rows that are none are left out; a state that is none is passed over
        for name in ('metrics.jsonl', 'state/manifest.json'):
            (run/name).parent.mkdir(exist_ok=True)
            (run/name).write_bytes(content)
        assert RunFolder('r').metrics() == []
        with pytest.warns(UserWarning), pytest.raises(ValueError, match='no saved state of run'):
            RunFolder('r').find_state()
        (tmp_path/'ledger.jsonl').write_bytes(content+b'\n{"name": "a", "what": "done", "reason": ""}\n{"name": '
            b'["a"], "what": "done", "reason": ""}\n{"name": "b", "what": "?", "reason": ""}\n')
        assert Ledger(tmp_path/'ledger.jsonl').last == {'a':('done', '')}

def test_a_manifest_names_its_own_files_only(tmp_path, monkeypatch):
    from steve1.base.files import sha256
    from steve1.training.runs import RunFolder
    monkeypatch.setenv('STEVE1_DATA', str(tmp_path))
    (state := tmp_path/'runs'/'r'/'state').mkdir(parents=True)
    torch.save({}, state/'main.pt'); (tmp_path/'far').write_text('x')
    for files,whole in (({'main.pt':sha256(state/'main.pt')}, True),
        ({'main.pt':sha256(state/'main.pt'), '../../../far':sha256(tmp_path/'far')}, False), ({}, False),
        ([1], False), ({'main.pt':1}, False)):
        (state/'manifest.json').write_text(json.dumps(files))
        if whole: assert RunFolder('r').find_state() == state; continue
        with pytest.warns(UserWarning), pytest.raises(ValueError): RunFolder('r').find_state()

@pytest.mark.parametrize('changes', [dict(n_heads=0), dict(image_size=(128,)), dict(image_size=(0,64)),
    dict(channels=(8,-1)), dict(channels=('8',)), dict(hidsize=-4)])
def test_sizes_of_networks(changes):
    "A size that cannot be is refused by its name, in every config that has it"
    from steve1.mineclip import MineCLIPConfig
    from steve1.models.idm import IDMConfig
    from steve1.policy import PolicyConfig
    key, = changes
    for cls in (PolicyConfig, IDMConfig):
        with pytest.raises((ValueError, TypeError), match=key): cls(**changes)
    for bad in (dict(heads=0), dict(image_size=(64,)), dict(patch=0), dict(mean=(1.,)), dict(stem=([],)),
        dict(t_heads=-1), dict(std=json.loads('['*900+']'*900))):
        with pytest.raises((ValueError, TypeError), match=next(iter(bad))): MineCLIPConfig(**bad)

@pytest.mark.parametrize('name,rows', [('embeds.npy', np.zeros((40,4), 'U2')),
    ('embeds.npy', np.zeros((40,4), 'V2')), ('actions.npy', None)])
def test_tables_of_something_else(tmp_path, name, rows):
    "Training names the file whose numbers are none"
    from steve1.dataset import ChunkStream, DataConfig
    from steve1.episodes import EpisodeWriter
    with EpisodeWriter(tmp_path/'ep', (16,16)) as w:
        w.add_many(np.zeros((40,16,16,3), np.uint8), dict(jump=np.zeros(40, int)))
        w.add_embeds(np.ones((40,4)), 'x')
    if rows is None:
        rows = np.load(tmp_path/'ep'/name); rows['jump'] = 64
    np.save(tmp_path/'ep'/name, rows)
    with pytest.raises(ValueError, match=name):
        ChunkStream([tmp_path/'ep'], DataConfig(T=16, max_gap=20), batch=1).batch(0)

@pytest.mark.skipif(not importlib.util.find_spec('open_clip'), reason="no list of merges: pip install --no-deps "
    "open_clip_torch")
def test_clip_tokenizer_without_the_hub(monkeypatch, tmp_path):
    "The merges that open_clip_torch ships give the ids of openai/clip-vit-base-patch16"
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    ids = ClipTokenizer()(['a photo of a cat', "Don't chop the TREE!", 'caf\u00e9 \u6811'])
    assert ids[0,:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert ids[1,:8].tolist() == [49406, 847, 713, 16663, 518, 2677, 256, 49407] and ids[2,:6].tolist() == [49406,
        15304, 162, 254, 495, 49407]

@pytest.mark.parametrize('name', ['/etc/passwd', '../other/x', '..', '', 'frames.mp4/../x', 'a\0b'])
def test_checksums_of_files_elsewhere(tmp_path, name):
    "metadata.json states checksums of files in the episode's folder; a file elsewhere is not read"
    import sys
    from steve1.episodes import episode_faults, toy_episode
    path, opened = toy_episode(tmp_path/'ep'), []
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'x').write_text('secret')
    facts = json.loads((path/'metadata.json').read_text())
    (path/'metadata.json').write_text(json.dumps(facts | dict(files=facts['files'] | {name:'0'*64})))
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' and watching else None)
    watching = True
    faults = [str(e) for e in episode_faults(path, video=False)]
    watching = False
    assert len(faults) == 1 and 'metadata.json names' in faults[0]
    assert not [p for p in opened if p.startswith('/etc/passwd') or '/other/' in p]
