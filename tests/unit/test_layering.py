"""Who may import whom (DESIGN section 2), read from the source of every file."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sparse_mu"
FOLDERS = {  # a folder's files share its level
    "data": 1,
    "models": 1,
    "membership": 1,
    "unlearn": 2,
    "interop": 3,
    "builders": 4,
}
LEVELS = {
    0: "types trees",
    1: "masks scores proximal curvature losses metrics statistics auditing topology optimiser "
    "units transfer",
    2: "bounds mask_bounds pruning pruning_at_init",
    3: "memory execution trials epoch passes streaming training standing stopping checkpoint "
    "shadows api evaluation digests quiet",
    4: "agreement run acts pruned_arms unpruned_arms judge distances config rules settings stages "
    "workdir results sealing caveats summary_words "
    "manifest verify summary report retry blocks captions table reading export imported_arm "
    "trial_keys progress transferred harmful",
    5: "main session signals prepare audit arguments terminal",
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names.split()} | FOLDERS
ANYWHERE = {"jax", "numpy", "optax", "chex", "scipy"}
# third-party packages that live in named places only
HOMES = {
    "flax": ("models/",),
    "orbax": ("checkpoint.py",),
    "safetensors": ("interop/",),
    "torch": ("interop/",),
    "tensorflow_datasets": ("data/",),
    "grain": ("data/",),
    "PIL": ("data/",),
    "sklearn": ("membership/", "data/sources.py", "transfer.py"),
    "matplotlib": ("report.py",),
    "jinja2": ("report.py",),
    "markupsafe": ("report.py",),  # jinja2's own type of a safe string
    "rich": ("table.py", "terminal.py"),
    "requests": ("data/plain_tfds.py",),  # its errors, which TFDS's downloads raise
    # absl in data quietens TFDS's logger, in streams it is what grain's workers ask for
    "absl": (
        "data/records.py",
        "data/streams.py",
        "data/plain_tfds.py",
        *(f"{name}.py" for n in (4, 5) for name in LEVELS[n].split()),
    ),
    "ml_collections": tuple(f"{name}.py" for n in (4, 5) for name in LEVELS[n].split()),
}
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path):
    """Dotted names of everything a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """The package's files that a file imports, such as ``masks`` or ``unlearn/contract``."""
    found = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "sparse_mu":
            continue
        for length in range(len(parts), 1, -1):
            target = "/".join(parts[1:length])
            if f"{target}.py" in FILES:
                found.add(target)
                break
            if f"{target}/__init__.py" in FILES:
                found.add(f"{target}/__init__")
                break
        else:
            raise AssertionError(f"{path}: '{name}' is no module (import it from where it lives)")
    return found


def level(name):
    return LEVEL_OF[name.split("/")[0]]


INNER = [name for name in FILES if name != "__init__.py"]
GRAPH = {name[: -len(".py")]: own_imports(FILES[name]) for name in INNER}


def test_the_reader_of_imports_sees_them():
    assert {"masks", "proximal", "types", "unlearn/contract"} <= GRAPH["unlearn/descent"]
    assert "membership/__init__" in GRAPH["api"]  # inside a function
    assert "unlearn/__init__" in GRAPH["builders/methods"]


@pytest.mark.parametrize("name", INNER)
def test_arrows_go_down(name):
    name = name.removesuffix(".py")
    own_level = level(name)  # a new file needs a level in the table above
    for target in GRAPH[name]:
        same_folder = "/" in name and name.split("/")[0] == target.split("/")[0]
        if own_level == 1 and not same_folder:
            assert level(target) == 0, f"{name} (L1) may read L0 only, not {target}"
        else:
            assert level(target) <= own_level, f"{name} imports {target}, which stands above it"


def test_no_imports_go_in_a_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError


@pytest.mark.parametrize("name", FILES)
def test_third_party_packages_stay_in_their_homes(name):
    for package in {dotted.split(".")[0] for dotted in imported(FILES[name])}:
        if package in sys.stdlib_module_names or package in ANYWHERE or package == "sparse_mu":
            continue
        homes = HOMES.get(package, ())
        at_home = name in homes or f"{name.split('/')[0]}/" in homes
        assert at_home, f"{name} imports {package}, whose homes are {homes or 'none'}"


@pytest.mark.parametrize("name", FILES)
def test_files_are_short_enough_to_read(name):
    lines = len(FILES[name].read_text().splitlines())
    assert lines <= 400, f"{name} has {lines} lines"


def test_no_file_is_a_drawer_for_everything():
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "tools"}
    assert not [name for name in FILES if drawers & set(Path(name).with_suffix("").parts)]
