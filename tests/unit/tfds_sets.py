"""Tiny data sets written by TFDS itself, in the layout it gives to the real ones."""

import io

from PIL import Image


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(colour, size=(8, 8), mode="RGB"):
    """An image of one colour."""
    return Image.new(mode, size, colour)


def prepare(data_dir, name, splits, features, file_format="array_record", config=None):
    """Writes a data set.

    Args:
        data_dir: where.
        name: what TFDS calls it.
        splits: split name to list of examples.
        features: feature name to feature.
        file_format: of the files.
        config: name of its one config, if it has configs.

    Returns:
        The folder of the version, 1.0.0.
    """
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version="1.0.0")] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: enumerate(examples) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Prepared.name = name
    builder = Prepared(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return data_dir / name / (config or "") / "1.0.0"
