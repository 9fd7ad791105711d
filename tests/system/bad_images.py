"""Generated data sets of the user's own, most of them wrong: ``.npz`` files and folders."""

import functools
import io
import os
import struct
import zipfile
import zlib

import numpy as np
from bad_bytes import damaged
from bad_lists import _DTYPES, _SHAPES, Touch, npy, npy_of_header
from fuzzing import DIGITS, PIPE, Case, Link, zipped
from hypothesis import strategies as st
from PIL import Image

_RNG = np.random.default_rng(0)
_OVERRIDES = ("--config.trials=2", "--config.dataset.validation=0")


def npz_case(content):
    given = ("--config.dataset.name=npz", "--config.dataset.data_dir=DIR/mine.npz")
    return Case((f"--config={DIGITS}", *_OVERRIDES, *given), (("mine.npz", content),))


ARRAYS = {
    "images": _RNG.integers(0, 256, (30, 8, 8, 1), np.uint8),
    "labels": np.arange(30) % 3,
    "ids": np.array([f"mine_{row}" for row in range(30)]),
    "class_names": np.array(["ant", "bee", "cat"]),
}
TWO_PARTS = {
    "train_images": ARRAYS["images"],
    "train_labels": ARRAYS["labels"],
    "test_images": ARRAYS["images"][:6],
    "test_labels": ARRAYS["labels"][:6],
}


def npz(arrays, compression=zipfile.ZIP_STORED):
    return zipped([(f"{name}.npy", npy(array)) for name, array in arrays.items()], compression)


VALID_NPZ = npz_case(npz(ARRAYS))
_BASES = (npz(ARRAYS), npz(TWO_PARTS), npz(ARRAYS, zipfile.ZIP_DEFLATED))
_ODD = (
    *(np.array([Touch()] * 30, object), np.zeros((30, 8, 8, 1), np.float32), np.zeros(30, int)),
    *(np.zeros((30, 8, 8, 2), np.uint8), np.zeros((30, 8, 8), np.uint8), np.zeros(30, bool)),
    *(np.zeros((0, 8, 8, 1), np.uint8), np.zeros((30, 0, 8, 1), np.uint8), np.zeros(0, int)),
    *(np.array(["x"] * 30), np.array([""] * 30), np.array(["\x1b[31m", "<b>", "\0", "\ud800"])),
    *(np.arange(30), np.arange(30) - 1, np.full(30, 2**63, np.uint64), np.arange(30) % 2),
    *(np.array(3), np.zeros(30), np.array(["ant", "ant", "cat"]), np.array([b"a"] * 3)),
    *(np.zeros((30, 1, 1, 1), np.uint8), np.zeros((30, 8, 7, 3), np.uint8), np.zeros(30, "i8,f4")),
    *(np.array([f"{row}\n" for row in range(30)]), np.array([2**31 - 1] * 30), np.array([])),
)


@st.composite
def arrays(draw):
    """The arrays with some left out, exchanged, of other rows or types, or lying headers."""
    base = dict(draw(st.sampled_from((ARRAYS, TWO_PARTS))))
    members = {name: npy(array) for name, array in base.items()}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from((*ARRAYS, *TWO_PARTS, "train_ids", "other")))
        array = base.get(name, ARRAYS["labels"])
        match draw(st.sampled_from(("drop", "odd", "rows", "value", "header", "bytes", "copy"))):
            case "drop":
                members.pop(name, None)
            case "odd":
                members[name] = npy(draw(st.sampled_from(_ODD)))
            case "rows":
                members[name] = npy(array[: draw(st.integers(0, len(array)))])
            case "value" if array.dtype.kind in "iu":
                changed = array.astype(np.int64)
                changed.flat[draw(st.integers(0, changed.size - 1))] = draw(
                    st.sampled_from((-1, 3, 99, 2**31, 2**62))
                )
                members[name] = npy(changed)
            case "header":
                header = (
                    f"{{'descr': '{draw(_DTYPES)}', 'fortran_order': False, "
                    f"'shape': {draw(_SHAPES)}, }}"
                )
                members[name] = npy_of_header(header, b"\0" * draw(st.integers(0, 50)))
            case "bytes":
                members[name] = draw(damaged(npy(array)))
            case "copy":
                members[name] = npy(draw(st.sampled_from(list(ARRAYS.values()))))
    compression = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return zipped([(f"{name}.npy", content) for name, content in members.items()], compression)


@functools.cache
def bombs():
    """Archives of a few kB that claim, or become, more than any machine has."""
    gib = b"\0" * 2**26
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 1024, 1024, 1), }"
    large = [
        ("images.npy", npy_of_header(header % 64, gib)),
        ("labels.npy", npy(np.zeros(64, int))),
    ]
    empty = "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }"
    return (
        zipped([("images.npy", npy_of_header(header % 2**40)), ("labels.npy", npy(np.zeros(3)))]),
        zipped(large, zipfile.ZIP_DEFLATED),  # 64 MiB: no row of a second class
        zipped(
            [
                *((f"{name}.npy", npy(ARRAYS[name])) for name in ("images", "labels")),
                ("ids.npy", npy_of_header(empty)),
            ]
        ),
        zipped([("../images.npy", npy(ARRAYS["images"])), ("/labels.npy", b"")]),
        zipped([("images.npy", b""), ("labels.npy", b"")], zipfile.ZIP_BZIP2),
        zipped([("images.npy", b"x" * 9999), ("labels.npy", b"")], zipfile.ZIP_LZMA),
    )


NPZ = st.one_of(
    arrays(),
    arrays(),
    st.sampled_from(_BASES).flatmap(damaged),
    st.one_of(
        st.deferred(lambda: st.sampled_from(bombs())),
        st.binary(max_size=40),
        st.sampled_from((PIPE, None, Link("nowhere"), Link("mine.npz"), Link("/dev/zero"))),
    ),
).map(npz_case)


# Folders


def encoded(kind="PNG", size=(8, 8), mode="RGB", **options):
    pixels = _RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def png(width, height, *, kind=b"IHDR", depth=8, colour=2):
    """A PNG of any size on paper, with right sums, and almost no pixels."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(kind, header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


IMAGES = (
    *(encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")),
    *(encoded("PNG", mode=mode) for mode in ("P", "L", "1", "RGBA", "LA", "I;16")),
    *(encoded("TIFF", mode="F"), encoded("JPEG", mode="CMYK"), encoded("JPEG", progressive=True)),
    *(encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", compression="jpeg")),
)
_NO_IMAGES = (
    *(
        b"",
        b"text",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"%PDF-1.4",
        b"%!PS-Adobe",
        b"<svg/>",
        b"P6 9",
    ),
    *(png(2**31 - 1, 2**31 - 1), png(30000, 30000), png(12000, 9000), png(0, 0), png(8, 8)),
    *(png(8, 8, depth=3), png(8, 8, kind=b"IHDX"), encoded("JPEG")[:-40], encoded(size=(9, 8))),
    *(
        b"P6 99999 99999 255\n",
        b"BM" + b"\xff" * 60,
        b"II*\0" + b"\xff" * 60,
        b"RIFF\xff\xff\xff\xff",
    ),
    *(
        PIPE,
        None,
        Link("nowhere"),
        Link("0.png"),
        Link("/dev/zero"),
        Link("../../../../etc/passwd"),
    ),
)
FOLDER = tuple(
    (f"mine/{part}/{name}/{number}.png", encoded())
    for part, count in (("train", 4), ("test", 1))
    for name in ("ant", "bee")
    for number in range(count)
)


def folder_case(files, more=()):
    given = ("--config.dataset.name=folder", "--config.dataset.data_dir=DIR/mine")
    return Case((f"--config={DIGITS}", *_OVERRIDES, *given, *more), tuple(files))


VALID_FOLDER = folder_case(FOLDER)
_NAMES = st.one_of(
    st.text(max_size=10),
    st.binary(min_size=1, max_size=10).map(os.fsdecode),
    st.sampled_from(
        ("a\nb.png", "\x1b[31m", "..png", "x" * 255, "日本.png", "\udcff.png", " ", "+")
    ),
).filter(
    lambda name: (
        name not in ("", ".", "..")
        and not {"/", "\0"} & set(name)
        and not any(0xD800 <= ord(c) < 0xDC80 or 0xDCFF < ord(c) < 0xE000 for c in name)
        and len(os.fsencode(name)) < 256
    )
)


@st.composite
def folders(draw):
    """The folder with files changed, left out or put in, under names of any kind."""
    files = dict(FOLDER)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from([name for name, _ in FOLDER]))
        above = draw(st.sampled_from(("mine", "mine/train", "mine/test", "mine/train/ant")))
        change = draw(st.sampled_from(("image", "damage", "none", "drop", "class", "put", "empty")))
        match change:
            case "image":
                files[path] = draw(st.sampled_from(IMAGES))
            case "damage":
                files[path] = draw(damaged(draw(st.sampled_from(IMAGES))))
            case "none":
                files[path] = draw(st.sampled_from(_NO_IMAGES))
            case "drop":
                files.pop(path, None)
            case "class":
                name = draw(_NAMES)
                files = {k.replace("/ant/", f"/{name}/"): v for k, v in files.items()}
            case "put":
                content = draw(st.sampled_from((*_NO_IMAGES, IMAGES[0])))
                files.setdefault(f"{above}/{draw(_NAMES)}", content)
            case "empty":
                part = path.rsplit("/", draw(st.integers(1, 3)))[0]
                files = {k: v for k, v in files.items() if not k.startswith(f"{part}/")}
                files[part] = draw(st.sampled_from((None, b"", Link("nowhere"))))
    size = draw(st.sampled_from(((), (), ("--config.dataset.image_size=8",))))
    return folder_case(sorted(files.items(), key=lambda item: item[0]), size)


FOLDERS = folders()
