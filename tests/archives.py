"""Small archives in the official layouts: random pixels, official member names.

Each ``write_*`` fills a folder and returns ``{split: {name: row}}``, what a reader must find: rows
are dicts of TFDS's features, pixels as arrays where the data set stores them without loss and as
encoded bytes where it stores the official file. ``name`` is the row's id or file name.
"""

import io
import os
import tarfile
import zipfile

import numpy as np

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
PETS = (("Abyssinian", 1, 1), ("american_bulldog", 2, 2))  # class, label, species
SYNSETS = ("n01440764", "n01739381")  # labels 0 and 58
SCENES = (  # (split, path) of TFDS's own partition, the first of each
    ("train", "/a/abbey/sun_aaaulhwrhqgejnyt.jpg"),
    ("train", "/a/abbey/sun_aacphuqehdodwawg.jpg"),
)


def pixels(rng, height=32, width=32):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def smooth(height, width):
    """A ramp in each direction, which JPEG and scaling keep: pixels from 0 to 255."""
    down, across = np.mgrid[0.5 / height : 1 : 1 / height, 0.5 / width : 1 : 1 / width]
    ramps = np.stack([down, across, (down + across) / 2], -1)
    return np.round(255 * ramps).astype(np.uint8)


def encode(image, kind="JPEG", mode="RGB"):
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(image).convert(mode).save(written, kind)
    return written.getvalue()


def write_tar(path, members, mode="w"):
    """Writes {name: bytes} into a tar archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def cifar_part(rng, split, start, rows, limits):
    """Bytes of one CIFAR file and its rows; ``limits`` are {label feature: classes}."""
    content, expected = b"", {}
    for index in range(start, start + rows):
        labels = {feature: int(rng.integers(classes)) for feature, classes in limits.items()}
        image = pixels(rng)
        content += bytes(labels.values()) + image.transpose(2, 0, 1).tobytes()
        expected[f"{split}_{index:05d}"] = {**labels, "image": image}
    return content, expected


def write_cifar10(folder, rows=4, seed=0):
    """``rows`` images in each of the five training files and in the test file."""
    rng, top = np.random.default_rng(seed), "cifar-10-batches-bin"
    members = {f"{top}/batches.meta.txt": "\n".join([*CIFAR10, "", ""]).encode()}
    expected = {"train": {}, "test": {}}
    for file, split in [
        *((f"data_batch_{n}", "train") for n in range(1, 6)),
        ("test_batch", "test"),
    ]:
        content, part = cifar_part(rng, split, len(expected[split]), rows, {"label": 10})
        members[f"{top}/{file}.bin"] = content
        expected[split] |= part
    members[f"{top}/readme.html"] = b"<p>"
    write_tar(folder / "cifar-10-binary.tar.gz", members, "w:gz")
    return expected


def write_cifar100(folder, rows=4, seed=0):
    """``rows`` images in the training file and in the test file."""
    rng, top = np.random.default_rng(seed), "cifar-100-binary"
    limits = {"coarse_label": 20, "label": 100}
    members = {
        f"{top}/coarse_label_names.txt": "".join(f"coarse{n}\n" for n in range(20)).encode(),
        f"{top}/fine_label_names.txt": "".join(f"fine{n}\n" for n in range(100)).encode(),
    }
    expected = {}
    for split in ("train", "test"):
        members[f"{top}/{split}.bin"], expected[split] = cifar_part(rng, split, 0, rows, limits)
    write_tar(folder / "cifar-100-binary.tar.gz", members, "w:gz")
    return expected


def write_svhn(folder, rows=4, seed=0):
    """``rows`` digits in each of the two files; among them a 0, which is filed as 10."""
    from scipy.io import savemat

    rng, expected = np.random.default_rng(seed), {}
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (32, 32, 3, rows), np.uint8)
        labels = rng.integers(1, 11, (rows, 1), np.uint8)
        labels[0] = 10
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels})
        expected[split] = {
            f"{split}_{n:06d}": {"label": int(labels[n, 0]) % 10, "image": images[..., n]}
            for n in range(rows)
        }
    return expected


XML = """<annotation><size><width>40</width><height>50</height></size><object><bndbox><xmin>4</xmin>
<ymin>5</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object></annotation>"""


def write_pets(folder, rows=2, seed=0):
    """``rows`` training and test images of two breeds; TFDS encodes Abyssinian_5 anew."""
    rng, expected = np.random.default_rng(seed), {"train": {}, "test": {}}
    images, notes, lists = {"images/Abyssinian_100.mat": b"no image"}, {}, {"train": "", "test": ""}
    for split, start in (("train", 5), ("test", 5 + rows)):
        for breed, label, species in PETS:
            for number in range(start, start + rows):
                name = f"{breed}_{number}"
                is_odd = name == "Abyssinian_5"
                image = encode(pixels(rng, 50, 40), *(("PNG", "RGBA") if is_odd else ()))
                mask = rng.integers(1, 4, (50, 40), np.uint8)
                images[f"images/{name}.jpg"] = image
                notes[f"annotations/trimaps/{name}.png"] = encode(mask, "PNG", "L")
                notes[f"annotations/trimaps/._{name}.png"] = b"junk of a Mac"
                box = (0.0, 0.0, 0.0, 0.0)
                if split == "train":
                    notes[f"annotations/xmls/{name}.xml"] = XML.encode()
                    box = (0.1, 0.1, 0.5, 0.5)
                lists[split] += f"{name} {label} {species} {number}\n"
                expected[split][f"{name}.jpg"] = {
                    "label": label - 1,
                    "species": species - 1,
                    "image": None if is_odd else image,
                    "segmentation_mask": mask,
                    "head_bbox": box,
                }
    notes["annotations/trainval.txt"] = lists["train"].encode()
    notes["annotations/test.txt"] = lists["test"].encode()
    write_tar(folder / "images.tar.gz", images, "w:gz")
    write_tar(folder / "annotations.tar.gz", notes, "w:gz")
    return expected


def sun_lists():
    """The first five paths of each split of TFDS's own partition."""
    import tensorflow_datasets as tfds

    stock = {"train": "tr", "test": "te", "validation": "va"}
    return {
        split: tfds.core.tfds_path(f"image_classification/sun397_tfds_{part}.txt")
        .read_text()
        .split()[:5]
        for split, part in stock.items()
    }


def write_sun397(folder, rows=2):
    """``rows`` ramps per split, the first of each too large; the lists of partition 1 as well.

    Rows hold the ramp at the stored size.
    """
    members, expected = {}, {}
    for split, paths in sun_lists().items():
        expected[split] = {}
        for number, path in enumerate(paths[:rows]):
            height, width = (400, 600) if number == 0 else (30, 40)
            kinds = [("JPEG", "RGB"), ("PNG", "RGBA"), ("GIF", "RGB"), ("BMP", "RGB")]
            kind = kinds[number % len(kinds)]
            members[f"SUN397{path}"] = encode(smooth(height, width), *kind)
            size = (283, 424) if number == 0 else (height, width)
            expected[split][path] = {"label": os.path.dirname(path), "pixels": smooth(*size)}
    members["SUN397/a/abbey/sun_of_no_list.jpg"] = b"no image, and not asked for"
    write_tar(folder / "SUN397.tar.gz", members, "w:gz")
    with zipfile.ZipFile(folder / "Partitions.zip", "w") as lists:
        lists.writestr("Training_01.txt", "\n".join([*expected["test"], ""]))
        lists.writestr("Testing_01.txt", "\n".join([*expected["validation"], ""]))
    return expected


def write_imagenet(folder, rows=2, seed=0):
    """``rows`` training images of two classes, one of them CMYK; three validation images."""
    import tensorflow_datasets as tfds

    rng, expected = np.random.default_rng(seed), {"train": {}, "validation": {}}
    outer = {}
    for synset in SYNSETS:
        numbers = [1309, *range(1, rows)] if synset == "n01739381" else range(rows)
        inner = {}
        for number in numbers:
            name = f"{synset}_{number}.JPEG"
            is_odd = name == "n01739381_1309.JPEG"
            inner[name] = encode(pixels(rng), mode="CMYK" if is_odd else "RGB")
            expected["train"][name] = {"label": synset, "image": None if is_odd else inner[name]}
        outer[f"{synset}.tar"] = write_tar(folder / "inner.tar", inner).read_bytes()
    (folder / "inner.tar").unlink()
    write_tar(folder / "ILSVRC2012_img_train.tar", outer)
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    members = {}
    for number in (3, 1, 50_000):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        members[name] = encode(pixels(rng))
        expected["validation"][name] = {"label": labels[number - 1], "image": members[name]}
    write_tar(folder / "ILSVRC2012_img_val.tar", members)
    return expected


WRITERS = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn_cropped": write_svhn,
    "oxford_iiit_pet": write_pets,
    "sun397": write_sun397,
    "sun397/standard-part1-120k": write_sun397,
    "imagenet2012": write_imagenet,
}


def checksums(name, folder):
    """``{url: UrlInfo}`` of the archives of a data set as they lie in ``folder``."""
    from tensorflow_datasets.core.download import checksums as sums

    from sparse_mu.data.catalogue import RECIPES

    return {a.url: sums.compute_url_info(folder / a.file) for a in RECIPES[name].archives}
