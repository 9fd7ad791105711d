"""Whatever is wrong with archives, network or disk is one line, and nothing half-made stays."""

import fcntl
import http.server
import io
import json
import resource
import shutil
import socket
import threading
import time

import archives
import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from sparse_mu.data import catalogue, plain_tfds
from sparse_mu.data.catalogue import RECIPES
from sparse_mu.data.prepare import prepare
from sparse_mu.data.types import DataError


@pytest.fixture
def refused(tmp_path):
    """Prepares from ``tmp_path/manual``; returns the one line, once nothing half-made was found."""
    data, manual = tmp_path / "data", tmp_path / "manual"

    def run(name, given=manual, checksums="of the files"):
        if checksums == "of the files":
            checksums = archives.checksums(name, manual)
        with pytest.raises(DataError) as caught:
            prepare(name, data, given, checksums=checksums)
        assert "\n" not in str(caught.value)
        left = [path.name for path in data.rglob("*") if path.suffix != ".lock"]
        assert set(left) <= {"downloads", name.partition("/")[0]}, left
        return str(caught.value).replace(f"{tmp_path}/", "")

    return run


def replace(tmp_path, file, name, content, mode="w:gz"):
    """Changes one member of a tar archive, or takes it out."""
    import tarfile

    path = tmp_path / "manual" / file
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    members[name] = content
    archives.write_tar(path, {n: c for n, c in members.items() if c is not None}, mode)


def test_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match="no recipe for 'cifar11'; there are cifar10, cifar100,"):
        prepare("cifar11", tmp_path)


def test_no_folder_of_archives(refused, tmp_path):
    said = refused("cifar10", tmp_path / "manual", None)
    assert said == "--manual_dir=manual: there is no such folder"


@pytest.mark.parametrize("name", archives.WRITERS)
def test_a_missing_archive(name, refused, tmp_path):
    (tmp_path / "manual").mkdir()
    archive = RECIPES[name].archives[0]
    said = refused(name, checksums=None)
    assert said.startswith(f"manual/{archive.file}: is missing; ")
    assert (archive.page or archive.url) in said


def test_imagenet_is_never_downloaded(refused):
    said = refused("imagenet2012", None, None)
    assert said.startswith("data/downloads/manual/ILSVRC2012_img_train.tar: is missing; register")


@pytest.mark.parametrize("name", archives.WRITERS)
def test_an_archive_of_wrong_size_or_sum(name, refused, tmp_path):
    archives.WRITERS[name](tmp_path / "manual")
    archive = RECIPES[name].archives[-1]
    path, right = tmp_path / "manual" / archive.file, archives.checksums(name, tmp_path / "manual")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    said = refused(name, checksums=right)
    assert f"manual/{archive.file}: holds {len(whole) - 100:,} of {len(whole):,} bytes" in said
    path.write_bytes(whole + b"\0")
    assert f"holds {len(whole) + 1:,} bytes, the official archive {len(whole):,}" in refused(
        name, checksums=right
    )
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    said = refused(name, checksums=right)
    assert said.startswith(f"manual/{archive.file}: has another SHA-256 sum than the official")


def test_the_sums_of_tfds_are_the_default(refused, tmp_path, monkeypatch):
    path = tmp_path / "manual" / "cifar-10-binary.tar.gz"
    archives.write_cifar10(path.parent)
    with path.open("r+b") as file:
        file.truncate(RECIPES["cifar10"].archives[0].size)  # as large as the official one, sparse
    assert "has another SHA-256 sum" in refused("cifar10", checksums=None)


DAMAGE = {  # what is done to one member: (data set, archive, member, content, what is said)
    "no archive": ("cifar10", "cifar-10-binary.tar.gz", None, b"junk", "ReadError"),
    "lacks a file": (
        *("cifar10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin/data_batch_3.bin", None),
        "it lacks cifar-10-batches-bin/data_batch_3.bin",
    ),
    "short records": (
        *("cifar10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin/test_batch.bin", b"123"),
        "test_batch.bin in it holds 3 bytes, no multiple of 3073",
    ),
    "label": (
        *("cifar100", "cifar-100-binary.tar.gz", "cifar-100-binary/train.bin", b"\x20" * 3074),
        "train.bin in it holds a coarse_label above 19",
    ),
    "names": (
        *("cifar100", "cifar-100-binary.tar.gz", "cifar-100-binary/fine_label_names.txt", b"cat\n"),
        "is damaged or not the official archive",
    ),
    "matlab": ("svhn_cropped", "train_32x32.mat", None, b"junk" * 99, "is damaged or not the"),
    "pet image": (
        *("oxford_iiit_pet", "images.tar.gz", "images/Abyssinian_6.jpg", b"junk"),
        "images/Abyssinian_6.jpg in it is no image",
    ),
    "pet anew": (
        *(
            "oxford_iiit_pet",
            "images.tar.gz",
            "images/Abyssinian_5.jpg",
            b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
        ),
        "images/Abyssinian_5.jpg in it is no image",
    ),
    "pet gone": (
        *("oxford_iiit_pet", "images.tar.gz", "images/Abyssinian_6.jpg", None),
        "it lacks images/Abyssinian_6.jpg",
    ),
    "trimap gone": (
        *("oxford_iiit_pet", "annotations.tar.gz", "annotations/trimaps/Abyssinian_6.png", None),
        "it lacks annotations/trimaps/Abyssinian_6.png",
    ),
    "box": (
        *("oxford_iiit_pet", "annotations.tar.gz", "annotations/xmls/Abyssinian_6.xml", b"<a>"),
        "ParseError",
    ),
    "list": (
        *("oxford_iiit_pet", "annotations.tar.gz", "annotations/test.txt", b"Abyssinian_9 38 1 1"),
        "it lacks annotations/trimaps/Abyssinian_9.png",
    ),
    "scene": (
        *("sun397", "SUN397.tar.gz", "SUN397/a/abbey/sun_aaaulhwrhqgejnyt.jpg", b"junk"),
        "SUN397/a/abbey/sun_aaaulhwrhqgejnyt.jpg in it is no image",
    ),
    "partitions": (
        *("sun397/standard-part1-120k", "Partitions.zip", None, b"junk"),
        "BadZipFile",
    ),
    "synset": (
        *("imagenet2012", "ILSVRC2012_img_train.tar", "n99999999.tar", b""),
        "n99999999.tar in it is the archive of no known class",
    ),
    "inner archive": (
        *("imagenet2012", "ILSVRC2012_img_train.tar", "n01440764.tar", b"junk" * 999),
        "ReadError",
    ),
    "validation name": (
        *("imagenet2012", "ILSVRC2012_img_val.tar", "ILSVRC2012_val_00050001.JPEG", b"x"),
        "ILSVRC2012_val_00050001.JPEG in it is no validation image",
    ),
    "validation image": (
        *("imagenet2012", "ILSVRC2012_img_val.tar", "ILSVRC2012_val_00000001.JPEG", b"x"),
        "ILSVRC2012_val_00000001.JPEG in it is no image",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_archive_whose_sum_is_right_and_content_wrong(kind, refused, tmp_path):
    name, file, member, content, reason = DAMAGE[kind]
    archives.WRITERS[name](tmp_path / "manual")
    if member is None:
        (tmp_path / "manual" / file).write_bytes(content)
    else:
        replace(tmp_path, file, member, content, "w:gz" if file.endswith("gz") else "w")
    said = refused(name)
    assert said.startswith(f"manual/{file}: is damaged or not the official archive")
    assert reason in said


def test_labels_of_svhn_outside_their_range(refused, tmp_path):
    from scipy.io import savemat

    archives.write_svhn(tmp_path / "manual")
    digits = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [11]])}
    savemat(tmp_path / "manual" / "test_32x32.mat", digits)
    assert "its y holds labels outside 1..10" in refused("svhn_cropped")


def test_a_split_of_no_images(refused, tmp_path):
    archives.write_sun397(tmp_path / "manual", rows=0)
    said = refused("sun397")
    assert said == "sun397: its archives hold no image of the split 'train'"


def test_an_image_twice(refused, tmp_path):
    import tarfile

    archives.write_imagenet(tmp_path / "manual")
    image = archives.encode(archives.smooth(8, 8))
    with tarfile.open(tmp_path / "manual" / "ILSVRC2012_img_val.tar", "a") as tar:
        member = tar.getmembers()[0]
        member.size = len(image)
        tar.addfile(member, io.BytesIO(image))
    said = refused("imagenet2012")
    assert said == "imagenet2012: its archives hold ILSVRC2012_val_00000003.JPEG twice"


def test_members_that_point_outside_are_not_followed(tmp_path):
    import tarfile

    from sparse_mu.data.archives import tar_files

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("../up", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert [name for name, _ in tar_files(tmp_path / "a.tar")] == ["../up"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


@pytest.mark.parametrize(("in_memory", "room"), [(2**30, 20_000), (1_000, 2_000)])
def test_a_full_disk(in_memory, room, refused, tmp_path, monkeypatch):
    # while array_record writes (its files hold 64 kB at least), or while TFDS sorts
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", in_memory)
    archives.write_cifar10(tmp_path / "manual")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        said = refused("cifar10")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == "data: the disk is full; cifar10 was not prepared"


def test_a_disk_too_small(refused, tmp_path, monkeypatch):
    archives.write_cifar10(tmp_path / "manual")
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert refused("cifar10") == "data: has 0.0 GB free, cifar10 needs about 0.0 GB"


def test_a_folder_that_cannot_be_written(tmp_path):
    archives.write_cifar10(tmp_path / "manual")
    sums = archives.checksums("cifar10", tmp_path / "manual")
    with pytest.raises(DataError, match=r"^/proc/none: "):  # not even by root
        prepare("cifar10", "/proc/none", tmp_path / "manual", checksums=sums)
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match="data: is no folder; give another --data_dir"):
        prepare("cifar10", tmp_path / "data", tmp_path / "manual", checksums=sums)


def test_two_at_once(refused, tmp_path):
    archives.write_cifar10(tmp_path / "manual")
    (tmp_path / "data" / "downloads").mkdir(parents=True)
    with open(tmp_path / "data" / "downloads" / "cifar10.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refused("cifar10")
    assert said == "data: another process prepares cifar10 there; wait until it has ended"


def test_what_is_there_and_cannot_be_read(tmp_path):
    manual, data = tmp_path / "manual", tmp_path / "data"
    archives.write_cifar10(manual)
    sums = archives.checksums("cifar10", manual)
    folder = prepare("cifar10", data, manual, checksums=sums).folder

    def refuses(match):
        with pytest.raises(DataError, match=match):
            prepare("cifar10", data, manual, checksums=sums)

    shard = folder / "cifar10-test.array_record-00000-of-00001"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    refuses(f"{folder}: is damaged .*; delete or move it")
    shard.write_bytes(whole[: 2**16])  # where a block of array_record ends
    refuses(rf"{folder}: is damaged \(record 0 is empty\); delete or move it")
    shard.unlink()
    refuses(f"{folder}: is damaged .*; delete or move it")
    info = folder / "dataset_info.json"
    described = json.loads(info.read_text())
    info.write_text(json.dumps(described | {"fileFormat": "tfrecord"}))
    refuses(f"{folder}: holds cifar10 as tfrecord, which only TensorFlow reads; give another")
    info.write_text("{")
    refuses(f"{folder.parent}: is damaged .*; delete or move it")
    info.unlink()
    refuses(f"{folder}: is there, but is no complete data set; delete or move it")


def test_a_wrong_sum_of_an_unknown_archive(tmp_path):
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    error = NonMatchingChecksumError("Artifact http://x/other.tar has wrong checksum:\n* Got: 0")
    said = r"^cifar10: an archive is not the official one: Artifact http://x/other.tar has wrong"
    with (
        pytest.raises(DataError, match=said) as caught,
        plain_tfds.explained("cifar10", RECIPES["cifar10"], tmp_path, tmp_path),
    ):
        raise error
    assert "\n" not in str(caught.value)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """CIFAR-10's archive on a server of this machine; returns the folder that is served."""
    folder = tmp_path / "served"
    archives.write_cifar10(folder)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    _move_archive(monkeypatch, server.server_port)
    yield folder
    server.shutdown()
    server.server_close()


def _move_archive(monkeypatch, port):
    recipe = RECIPES["cifar10"]
    archive = recipe.archives[0]._replace(url=f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz")
    monkeypatch.setitem(catalogue.RECIPES, "cifar10", recipe._replace(archives=(archive,)))


def test_a_download(served, tmp_path):
    sums = archives.checksums("cifar10", served)
    assert prepare("cifar10", tmp_path / "data", checksums=sums).rows == {"train": 20, "test": 4}
    shutil.rmtree(tmp_path / "data" / "cifar10")
    (served / "cifar-10-binary.tar.gz").unlink()
    assert prepare("cifar10", tmp_path / "data", checksums=sums).is_new  # downloaded once


def test_a_download_of_other_bytes(served, tmp_path, refused):
    sums = archives.checksums("cifar10", served)
    (served / "cifar-10-binary.tar.gz").write_bytes(b"<html>moved</html>")
    said = refused("cifar10", None, sums)
    assert said.startswith("http://127.0.0.1:") and "has another SHA-256 sum" in said


def test_a_download_that_is_not_there(served, tmp_path, refused):
    sums = archives.checksums("cifar10", served)
    (served / "cifar-10-binary.tar.gz").unlink()
    said = refused("cifar10", None, sums)
    assert said.startswith("Failed to get url http://127.0.0.1:") and "HTTP code: 404. Get " in said
    assert said.endswith(" elsewhere and give the folder as --manual_dir")


def test_no_network(tmp_path, refused, monkeypatch):
    archives.write_cifar10(tmp_path / "manual")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        _move_archive(monkeypatch, free.getsockname()[1])
        start = time.monotonic()
        said = refused("cifar10", None)
    assert time.monotonic() - start < 30  # TFDS itself tries for 200 s
    assert said.startswith("No connection to 127.0.0.1. Get http://127.0.0.1:")
