"""Generated models of the user's own, most of them wrong: ``.safetensors``, ``.pth`` and orbax."""

import collections
import functools
import json
import pickle
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from bad_bytes import damaged
from bad_lists import Touch
from fuzzing import DIGITS, PIPE, Case, Link, zipped
from hypothesis import strategies as st
from torch_files import Parameter, View, pickled

from sparse_mu import interop, models
from sparse_mu.types import Model

_OVERRIDES = ("--config.trials=2", "--config.dataset.limit=200", "--config.prune.sparsities=()")


def case(name, files):
    given = (*_OVERRIDES, f"--config.model.checkpoint=DIR/{name}")
    return Case((f"--config={DIGITS}", *given), tuple(files))


@functools.cache
def model():
    """The network of the digits with random weights."""
    init = models.init_of(models.SmallCNN(10, "patches"), (1, 8, 8, 1))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: Model(*init(key)), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


@functools.cache
def state_dict():
    return interop.to_state_dict(model())


# .safetensors


def safe(header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


@functools.cache
def safetensors():
    """Header and content of the valid file."""
    from safetensors.numpy import save

    stored = save(state_dict())
    end = 8 + struct.unpack("<Q", stored[:8])[0]
    return json.loads(stored[8:end]), stored[end:]


_DTYPES = st.sampled_from(
    ("F64", "F16", "BF16", "F8_E5M2", "F8_E4M3", "I64", "U8", "BOOL", "C64", "F4", "X", "", None, 3)
)
_SIZES = st.one_of(
    st.integers(-2, 2000), st.sampled_from((2**31, 2**63, 2**64, 10**30, 1.5, "8", None, True))
)


@st.composite
def safe_files(draw):
    """The file with entries of its header changed, or a length that lies."""
    header, content = safetensors()
    header = json.loads(json.dumps(header))
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        entry = header[name]
        match draw(st.sampled_from(("drop", "name", "dtype", "shape", "offsets", "odd", "meta"))):
            case "drop":
                header.pop(name)
            case "name":
                header[draw(st.text(max_size=6))] = header.pop(name)
            case "dtype" if isinstance(entry, dict):
                entry["dtype"] = draw(_DTYPES)
            case "shape" if isinstance(entry, dict):
                entry["shape"] = draw(st.lists(_SIZES, max_size=5))
            case "offsets" if isinstance(entry, dict):
                entry["data_offsets"] = draw(st.lists(_SIZES, min_size=1, max_size=3))
            case "odd":
                header[name] = draw(st.sampled_from((None, [], {}, "x", 3, {"dtype": "F32"})))
            case "meta":
                header["__metadata__"] = draw(st.sampled_from((None, {"a": 1}, {"a": "b"}, [])))
        if not header:
            break
    length = draw(st.sampled_from((None, None, None, 0, 2**63, 2**64 - 1, 10**8, 7)))
    cut = draw(st.sampled_from((None, None, None, -1, 0, 100)))
    return safe(header, content[:cut], length)


@functools.cache
def whole_safetensors():
    return safe(*safetensors())


SAFETENSORS = st.one_of(
    safe_files(),
    safe_files(),
    st.deferred(lambda: damaged(whole_safetensors())),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            (
                *(b"", safe(b"{}"), safe(b"[" * 10**5), safe(b"null"), safe(b"\xff"), PIPE),
                *(safe({}, b"x" * 99), safe(b'{"a":' * 10**4), Link("nowhere"), Link("/dev/zero")),
            )
        ),
    ),
).map(lambda content: case("mine.safetensors", [("mine.safetensors", content)]))


# .pth


def torch_archive(content, storages=None, *, compression=zipfile.ZIP_STORED, extra=(), order=None):
    members = [("model/data.pkl", content), ("model/byteorder", order or b"little")]
    members += [(f"model/data/{key}", stored) for key, stored in (storages or {}).items()]
    return zipped([*members, *extra], compression)


@functools.cache
def torch_file():
    return torch_archive(*pickled(state_dict()))


def _deep_key():
    """A pickle whose dict has a tuple of 2**60 entries as its key: no pickler could hash it."""
    pairs = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    return b"\x80\x02}" + pairs + b"K\x01s."


_ENTRIES = (
    *(None, 3, "x", [1], {}, {"a": {"b": 1}}, (1, 2), 2**70, 1.5, b"bytes", True, [[[]]], Touch()),
    *(np.zeros(3, np.int64), np.zeros(3, np.float16), np.float32([1, np.nan]), np.zeros((0, 3))),
    *(complex(1, 2), {1, 2}, frozenset(), print, object, collections.Counter("ab"), pickle),
)
_COUNTS = st.one_of(st.integers(-2, 300), st.sampled_from((2**31, 2**47, 2**48, 2**63, True, None)))


@st.composite
def torch_files(draw):
    """The state dict with entries changed, in an archive with members changed."""
    values = dict(state_dict())
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(values, key=str)))
        value = values[name]
        match draw(
            st.sampled_from(("drop", "name", "odd", "view", "cast", "shape", "value", "wrap"))
        ):
            case "drop":
                values.pop(name)
            case "name":
                values[draw(st.one_of(st.text(max_size=6), st.integers(), st.none()))] = value
            case "odd":
                odd = draw(st.sampled_from(_ENTRIES))
                values[name] = odd if odd is not pickle else "pickle"
            case "view":
                lists = st.lists(_COUNTS, max_size=4).map(tuple)
                storage = np.zeros(8, np.float32)
                values[name] = View(storage, draw(_COUNTS), draw(lists), draw(lists), "77")
            case "cast" if isinstance(value, np.ndarray):
                values[name] = value.astype(draw(st.sampled_from(("float16", "int64", "float32"))))
            case "shape" if isinstance(value, np.ndarray):
                values[name] = value.reshape(-1)[: draw(st.integers(0, value.size))]
            case "value" if isinstance(value, np.ndarray) and value.size:
                values[name] = np.full_like(value, draw(st.sampled_from((0, 1e30, 7))))
            case "wrap" if isinstance(value, np.ndarray):
                values[name] = Parameter(value)
        if not values:
            break
    tree = draw(st.sampled_from((values, {"state_dict": values, "epoch": 3}, [values], (values,))))
    try:
        content, storages = pickled(tree, draw(st.sampled_from((2, 2, 2, 3, 4, 5, 1, 0))))
    except (pickle.PicklingError, AttributeError, KeyError, TypeError):  # torch could not either
        content, storages = pickled(values if not values else {"x": 1})
    if storages and draw(st.integers(0, 4)) == 0:
        key = draw(st.sampled_from(sorted(storages)))
        change = draw(st.sampled_from(("drop", "cut", "longer")))
        if change == "drop":
            storages.pop(key)
        else:
            storages[key] = storages[key][:-1] if change == "cut" else storages[key] + b"\0"
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged(content))
    extra = draw(
        st.sampled_from(
            (
                *((), (), (), (("../../evil", b"x"),), (("other/data.pkl", b"."),)),
                *((("model/data/../data/0", b"x"),), (("model/code/a.py", b"1/0"),)),
            )
        )
    )
    order = draw(st.sampled_from((None, None, None, b"big", b"x" * 99)))
    compression = draw(st.sampled_from((*[zipfile.ZIP_STORED] * 4, zipfile.ZIP_DEFLATED)))
    return torch_archive(content, storages, compression=compression, extra=extra, order=order)


_OPCODES = st.sampled_from(
    (
        *(b"}", b"]", b")", b"(", b"t", b"u", b"s", b"a", b"e", b"N", b"\x88", b"K\x05", b"\x85"),
        *(b"\x86", b"\x87", b"q\x00", b"h\x00", b"\x94", b"R", b"b", b"Q", b"0", b"2", b"1", b"."),
        *(b"X\x01\x00\x00\x00a", b"\x8c\x07storage", b"\x8c\x01x", b"ccollections\nOrderedDict\n"),
        *(b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"\x93", b"J\xff" * 4),
        *(
            b"cos\nsystem\n",
            b"c__builtin__\neval\n",
            b"\x8a\xff" + b"\x7f" * 255,
            b"G" + b"\x7f" * 8,
        ),
        *(
            b"i",
            b"o",
            b"\x81",
            b"\x92",
            b"P0\n",
            b"I1\n",
            b"\x82\x01",
            b"\x95" + b"\xff" * 8,
            b"\xff",
        ),
    )
)
_PROGRAMS = st.lists(_OPCODES, max_size=14).map(lambda codes: b"\x80\x02" + b"".join(codes) + b".")
PTH = st.one_of(
    torch_files(),
    torch_files(),
    st.deferred(lambda: damaged(torch_file())),
    _PROGRAMS.map(torch_archive),
    st.one_of(
        st.binary(max_size=40),
        st.deferred(
            lambda: st.sampled_from(
                (
                    *(torch_archive(_deep_key()), torch_archive(b"\x80\x02" + b"]" * 2**20 + b".")),
                    *(torch_archive(b"N" * 2**19), torch_archive(b""), PIPE, Link("nowhere")),
                    *(pickle.dumps(Touch()), torch_archive(pickle.dumps(Touch())), b"\x80\x02}."),
                    *(torch_archive(b"\0" * 2**22, compression=zipfile.ZIP_DEFLATED), None),
                )
            )
        ),
    ),
).map(lambda content: case("mine.pth", [("mine.pth", content)]))


# Orbax


def _saved(tree, kind=ocp.StandardCheckpointer):
    """The files of a folder that orbax wrote."""
    with tempfile.TemporaryDirectory() as above, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that jax has no use for
        folder = Path(above) / "saved"
        with kind() as checkpointer:
            checkpointer.save(folder, tree)
            if kind is ocp.StandardCheckpointer:
                checkpointer.wait_until_finished()
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))
        }


def _tree(**changed):
    found = {"params": model().params, "batch_stats": model().net_state["batch_stats"]}
    return {name: value for name, value in (found | changed).items() if value is not None}


def _of(function):
    return jax.tree.map(function, model().params)


TREES = {  # what another program may have saved; the first three are valid
    "plain": _tree,
    "masks": lambda: _tree(masks=_of(lambda leaf: np.ones(leaf.shape, bool))),
    "more": lambda: _tree(step=np.int64(3)),
    "layer": lambda: _tree(params=dict(list(model().params.items())[1:])),
    "float64": lambda: _tree(params=_of(lambda leaf: leaf.astype(np.float64) * 1e300)),
    "other": lambda: {"a": np.zeros(3)},
    "shape": lambda: _tree(params=_of(lambda leaf: leaf[..., :1])),
    "bool": lambda: _tree(params=_of(lambda leaf: leaf > 0)),
    "nan": lambda: _tree(params=_of(lambda leaf: leaf * np.nan)),
    "complex": lambda: _tree(params=_of(lambda leaf: leaf * 1j)),
    "statistics": lambda: _tree(batch_stats=None),
    "float masks": lambda: _tree(masks=_of(lambda leaf: leaf)),
    "no mask": lambda: _tree(masks=_of(lambda leaf: np.zeros(leaf.shape, bool))),
    "array": lambda: _tree(params=np.zeros(3)),
    "list": lambda: _tree(params=[np.zeros(3)]),
}


@functools.cache
def orbax_files(tree, *, many=False):
    """The files of a saved tree: in orbax's own database, or many, of one array each."""
    kind = functools.partial(ocp.PyTreeCheckpointer, use_ocdbt=False)
    return _saved(TREES[tree](), kind if many else ocp.StandardCheckpointer)


@st.composite
def orbax_folders(draw):
    """A folder with files damaged, left out, emptied, exchanged or put in."""
    tree = draw(st.sampled_from((*["plain"] * len(TREES), *TREES)))
    files = dict(orbax_files(tree, many=tree == "plain" and draw(st.booleans())))
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(name for name in files if type(files[name]) is bytes)))
        match draw(
            st.sampled_from(("damage", "damage", "damage", "json", "drop", "empty", "swap", "dir"))
        ):
            case "damage":
                files[name] = draw(damaged(files[name]))
            case "json":
                name = draw(st.sampled_from(("_METADATA", "_sharding", "_CHECKPOINT_METADATA")))
                before = files.get(name)
                files[name] = draw(_changed_json(before if type(before) is bytes else b"{}"))
            case "drop":
                part = "/".join(name.split("/")[: draw(st.sampled_from((1, 2, 9)))])
                files = {k: v for k, v in files.items() if not f"{k}/".startswith(f"{part}/")}
            case "empty":
                files[name] = b""
            case "swap":
                files[name] = files[draw(st.sampled_from(sorted(files)))]
            case "dir":
                files[name] = draw(st.sampled_from((None, Link("nowhere"))))
        if not any(type(content) is bytes for content in files.values()):
            break
    return case(
        "mine", [("mine", None), *((f"mine/{name}", files[name]) for name in sorted(files))]
    )


@st.composite
def _changed_json(draw, text):
    """JSON with one value, anywhere in it, exchanged for another kind."""
    try:
        found = json.loads(text)
    except ValueError:
        return b"{}"
    place = found
    odd = draw(st.sampled_from((None, [], {}, 0, -1, 2**70, "x", True, [[0]], {"a": {"b": []}})))
    while isinstance(place, dict | list) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(keys))
        if not (isinstance(place[key], dict | list) and place[key]) or draw(st.integers(0, 4)) == 0:
            if isinstance(place, dict) and draw(st.booleans()):
                del place[key]
            else:
                place[key] = odd
            break
        place = place[key]
    return json.dumps(found).encode()


ORBAX = st.deferred(orbax_folders)


def valid(kind):
    """The case that every other one of its kind was made from."""
    if kind == "orbax":
        files = orbax_files("plain")
        return case("mine", [("mine", None), *((f"mine/{k}", v) for k, v in files.items())])
    content = torch_file() if kind == "pth" else whole_safetensors()
    return case(f"mine.{kind}", [(f"mine.{kind}", content)])
