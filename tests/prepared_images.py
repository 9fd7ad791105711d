"""A TFDS directory of small JPEGs of varied size, prepared without TensorFlow."""

import io

import numpy as np
from PIL import Image

NAME = "tiny_pictures"
CLASSES = ("circle", "square", "wave")
ROWS = {"train": 48, "validation": 12}


def jpeg(label, rng):
    """A picture whose colours tell its class: 60 to 100 pixels wide, 50 to 80 high."""
    width, height = int(rng.integers(60, 101)), int(rng.integers(50, 81))
    coarse = rng.integers(0, 120, (5, 6, 3))
    coarse[..., label] += 120
    picture = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder, rows=ROWS, damaged=None):
    """Prepares the data set in ``folder``; row ``damaged`` of every split is no image."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "file_name": tfds.features.Text(),
        }
    )

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = NAME

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split) for split in rows}

        def _generate_examples(self, split):
            rng = np.random.default_rng(len(split))
            for row in range(rows[split]):
                label = row % len(CLASSES)
                image = b"no image" if row == damaged else jpeg(label, rng)
                name = f"{split}_{row}.JPEG"
                yield name, {"image": io.BytesIO(image), "label": label, "file_name": name}

    Pictures(data_dir=folder, file_format="array_record").download_and_prepare()
