"""What two runs of one command must have in common, bit for bit."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_mu import checkpoint, results

# how the names end of what was measured: times, and the memory of the programs that a process
# happened to compile
_MEASURED = ("_seconds", "rte_repeats", "chunk")
SHOWN = 3  # differences that are named


class Kept(NamedTuple):
    """A finished workdir without what was measured of its processes.

    Attributes:
        stages: the names of their folders, with their fingerprints.
        arrays: the digest of every leaf of every stage, by ``ARM/LEAF``: weights, masks and
            rewind weights.
        told: the scalars of every stage as JSON, by arm.
        rows: the rows of ``results.jsonl`` as JSON, as the package reads them.
        digests: those of ``manifest.json``, of the whole run and of every arm.
    """

    stages: list[str]
    arrays: dict[str, str]
    told: dict[str, str]
    rows: list[str]
    digests: dict


def read(workdir: Path) -> Kept:
    """Reads what a finished run left."""
    arrays, told = {}, {}
    stages = sorted((workdir / "stages").iterdir())
    for stage in stages:
        leaves, meta = checkpoint.read_arrays(stage)
        arm = stage.name.rpartition("-")[0]
        arrays |= {f"{arm}/{name}": digest(leaf) for name, leaf in leaves.items()}
        told[arm] = _without_measured(meta)
    trials = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["trials"]
    rows = results.read_whole(workdir / "results.jsonl", trials)
    manifest = json.loads((workdir / "manifest.json").read_text(encoding="utf-8"))
    return Kept(
        stages=[stage.name for stage in stages],
        arrays=arrays,
        told=told,
        rows=[_without_measured(row) for row in rows],
        digests=manifest["digests"] | manifest["arms"],
    )


def digest(leaf: np.ndarray) -> str:
    """Of type, shape and every bit."""
    leaf = np.ascontiguousarray(leaf)
    return hashlib.sha256(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes()).hexdigest()


def _without_measured(given: dict) -> str:
    kept = {key: value for key, value in given.items() if not key.endswith(_MEASURED)}
    return json.dumps(kept, sort_keys=True)


def differences(reference: Kept, other: Kept) -> list[str]:
    """The names of what differs; empty if nothing does."""
    found = [f"stage {name}" for name in sorted({*reference.stages} ^ {*other.stages})]
    for expected, got in ((reference.arrays, other.arrays), (reference.told, other.told)):
        names = sorted(expected.keys() | got.keys())
        found += [name for name in names if expected.get(name) != got.get(name)]
    if len(reference.rows) != len(other.rows):
        found.append(f"{len(other.rows)} rows for {len(reference.rows)}")
    pairs = zip(reference.rows, other.rows, strict=False)
    found += [f"row {number}" for number, (a, b) in enumerate(pairs) if a != b]
    names = sorted(reference.digests.keys() | other.digests.keys())
    found += [
        f"digest of {name}"
        for name in names
        if reference.digests.get(name) != other.digests.get(name)
    ]
    return found


def in_words(found: list[str]) -> str:
    """The first few differences and how many there are."""
    return f"{len(found)} differences: {', '.join(found[:SHOWN])}"


def flipped_bit(workdir: Path, kept: Kept) -> tuple[str, Kept]:
    """``kept`` as it would be with one bit of one weight flipped, and the name of that leaf."""
    stage = sorted((workdir / "stages").iterdir())[-1]
    leaves, _ = checkpoint.read_arrays(stage)
    name = next(name for name in leaves if "model" in name and name.endswith("kernel"))
    leaf = leaves[name].copy()
    leaf.view(np.uint8).reshape(-1)[0] ^= 1
    whole = f"{stage.name.rpartition('-')[0]}/{name}"
    return whole, kept._replace(arrays=kept.arrays | {whole: digest(leaf)})
