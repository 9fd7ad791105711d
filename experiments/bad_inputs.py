"""A table of bad inputs: what each is, and the exit code and the line that the command gives.

    python -m experiments.bad_inputs

gives one telling input of every kind to ``sparse_mu.main.main`` and writes
``experiments/results/bad_inputs.md``. Every input is wrong, so nothing is trained; it fails where
one is not refused, says more than one line, or leaves a workdir. ``DIR`` is the folder that the
files stand in.
"""

import contextlib
import io
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

from sparse_mu import run as pipeline
from sparse_mu.main import main

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
LISTED = ("--config.forget.scenario=indices", "--config.dataset.validation=0")


class Bad(NamedTuple):
    """An input.

    Attributes:
        what: it is, in words; "" where its arguments say it.
        arguments: of the command, beside ``--workdir``; with ``--config=configs/digits.py`` where
            they name no config.
        files: by path below DIR.
    """

    what: str
    arguments: tuple[str, ...]
    files: dict[str, bytes]


class Code:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> tuple:
        """What unpickling calls."""
        return os.system, ("touch unpickled",)


def npy(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=True)
    return written.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return written.getvalue()


def header(shape: str, kind: str = "<i8") -> bytes:
    """A .npy of 40 bytes whose header says anything."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + b"\0" * 40


def overrides() -> Iterator[Bad]:
    for text in (
        *("--confg=x", "--config.trails=2", "--config.train=5", "--config.trials=ten"),
        *("--config.trials=2.5", "--config.train.learning_rate=nan", "--config.seed=-1"),
        *("--config.prune.sparsities=90", "--config.unlearn.methods=fisherr", "--config.trials"),
        *("--config.forget.classes=3+", "--config.forget.classes=three", "digits"),
        *("--config.forget.file=\x1b[31mred", "--config.prune.rewind_epoch=99"),
        *("--config.dataset.name=cifar99", "--config.model.name=vgg16_bn", "--flagfile=flags"),
    ):
        more = ("--config.dataset.data_dir=DIR",) if "cifar99" in text else ()
        yield Bad("", (text, *more), {})


def applications() -> Iterator[Bad]:
    trojan, transfer = (
        f"--config={ROOT}/configs/digits_{name}.py" for name in ("trojan", "transfer")
    )
    for text in (
        *("trojan.size=9", "trojan.offset=7", "trojan.target=ten"),
        *("trojan.target=10", "trojan.ratio=0.0", "trojan.ratio=1.0", "trojan.trigger=stripes"),
    ):
        yield Bad(f"digits_trojan.py, `{text}`", (trojan, f"--config.{text}"), {})
    both = (f"--config={ROOT}/configs/digits.py", transfer)
    yield Bad("two configs", both, {})
    unseen = ("--config.trojan.trigger=black_square", "--config.trojan.size=1")
    yield Bad("digits_trojan.py, a black pixel in a black corner", (trojan, *unseen), {})
    for text in (
        *("forget.classes=()", "transfer.classes=(6,12)"),
        *("transfer.choose=random", "dataset.pool=tuning"),
    ):
        yield Bad(f"digits_transfer.py, `{text}`", (transfer, f"--config.{text}"), {})
    other = {"images": np.zeros((40, 16, 16, 3), np.uint8), "labels": np.arange(40) % 4}
    files = {"other.npz": archive({f"{name}.npy": npy(array) for name, array in other.items()})}
    place = ("--config.transfer.dataset=npz", "--config.transfer.data_dir=DIR/other.npz")
    more = ("--config.transfer.classes=()", "--config.transfer.limit=0")
    yield Bad("digits_transfer.py, target of another shape", (transfer, *place, *more), files)


def config_files() -> Iterator[Bad]:
    for what, text in {
        "syntax error in a config file": "def get_config(:",
        "config file that raises": "def get_config():\n    return 1 / 0",
        "config file that returns a dict": "def get_config():\n    return {'trials': 3}",
        "config file without get_config": "trials = 3",
        "config file of bytes": b"\xff\xfe\0",
        "config that stands inside itself": "from sparse_mu.settings import every_key\n"
        "def get_config():\n    config = every_key()\n    config.train.self = config\n"
        "    return config",
    }.items():
        content = text if isinstance(text, bytes) else text.encode()
        yield Bad(what, ("--config=DIR/mine.py",), {"mine.py": content})


def lists() -> Iterator[Bad]:
    for what, name, content in (
        ("row twice", "rows.txt", b"3\n3\n"),
        ("row that is none", "rows.txt", b"1352\n"),
        ("word among rows", "rows.csv", b"row\n1\ntwo\n"),
        ("bytes that are no text", "rows.txt", b"\xff\xfe\0"),
        ("100,000 brackets", "rows.json", b"[" * 10**5),
        ("fractions", "rows.json", b"[1.5]"),
        ("pickled object", "rows.npy", npy(np.array([Code()], object))),
        ("header of 8 TB", "rows.npy", header("(1000000000000,)")),
        ("header of 10**12 texts of 0 bytes", "rows.npy", header("(1000000000000,)", "<U0")),
        ("another format", "rows.tsv", b"3\n"),
    ):
        yield Bad(what, (*LISTED, f"--config.forget.file=DIR/{name}"), {name: content})


def images() -> Iterator[Bad]:
    arrays = {
        "images": np.zeros((10, 8, 8, 1), np.uint8),
        "labels": np.arange(10) % 2,
    }
    for what, changed in {
        "pickled labels": {"labels": npy(np.array([Code()] * 10, object))},
        "labels of no class": {"labels": npy(np.arange(10) - 1)},
        "fewer labels than images": {"labels": npy(np.arange(9) % 2)},
        "images of 64 MiB on paper": {"images": header("(64, 1024, 1024, 1)", "|u1")},
    }.items():
        members = {f"{name}.npy": npy(array) for name, array in arrays.items()}
        members |= {f"{name}.npy": content for name, content in changed.items()}
        given = ("--config.dataset.name=npz", "--config.dataset.data_dir=DIR/mine.npz")
        yield Bad(what, given, {"mine.npz": archive(members)})
    written = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(written, "PNG")
    png = written.getvalue()
    places = [f"mine/{part}/{name}/0.png" for part in ("train", "test") for name in ("ant", "bee")]
    large = png[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png[24:]
    for what, content in {
        "image cut short": png[:100],
        "image of 4 * 10**18 pixels on paper": large,
        "text for an image": b"text",
    }.items():
        given = ("--config.dataset.name=folder", "--config.dataset.data_dir=DIR/mine")
        yield Bad(what, given, dict.fromkeys(places, png) | {places[0]: content})


def models() -> Iterator[Bad]:
    code = b"\x80\x02" + pickle.dumps(Code(), 2)[2:]
    nested = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))
    for what, name, content in (
        ("pickle that runs a command", "mine.pth", archive({"m/data.pkl": code})),
        ("pickle that is no archive", "mine.pth", code),
        (
            "key of 2**60 tuples",
            "mine.pth",
            archive({"m/data.pkl": b"\x80\x02}" + nested + b"K\1s."}),
        ),
        ("header of 2**63 bytes", "mine.safetensors", struct.pack("<Q", 2**63) + b"{}"),
        ("network without tensors", "mine.safetensors", struct.pack("<Q", 2) + b"{}"),
        ("folder of something else", "mine/notes.txt", b"text"),
        ("nothing there", "other", b""),
    ):
        given = "mine" if name in ("mine/notes.txt", "other") else name
        arguments = ("--config.prune.sparsities=()", f"--config.model.checkpoint=DIR/{given}")
        yield Bad(what, arguments, {name: content})


def answer(bad: Bad) -> tuple[int, str]:
    """The exit code of the command and its line."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in bad.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        workdir = Path(folder) / "workdir"
        given = [argument.replace("DIR", folder) for argument in bad.arguments]
        argv = [f"--workdir={workdir}", *given]
        if not any(argument.startswith("--config=") for argument in given):
            argv.insert(0, f"--config={ROOT / 'configs' / 'digits.py'}")
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(pipeline, "run_all", side_effect=RuntimeError("it was accepted")),
        ):
            code = main(["sparse_mu", *argv])
        line = err.getvalue()
        if code not in (1, 2) or out.getvalue() or line.count("\n") != 1 or workdir.exists():
            raise RuntimeError(f"{bad.what or bad.arguments}: {code}, {line!r}")
        return code, line.strip().replace(folder, "DIR").replace(f"{ROOT}/", "")


def _cell(text: str) -> str:
    return text.encode("unicode_escape").decode().replace("|", "\\|").replace("\\\\", "\\")


def run() -> str:
    """The table, as markdown."""
    lines = ["| input | exit code | line |", "| --- | --- | --- |"]
    for of_kind in (overrides, config_files, lists, images, models, applications):
        for bad in of_kind():
            code, line = answer(bad)
            shown = bad.what or f"`{_cell(bad.arguments[0])}`"
            lines.append(f"| {shown} | {code} | `{_cell(line)}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    table = run()
    text = (
        "# Bad inputs, and what the command says\n\n"
        "Made by `python -m experiments.bad_inputs`; each beside `--config=configs/digits.py` (or "
        "the config that is named) and `--workdir=DIR/workdir`.\nStandard output stays empty, and "
        "no workdir is made.\n\n"
        f"{table}\n"
    )
    (RESULTS / "bad_inputs.md").write_text(text, encoding="utf-8")
    print(table)
