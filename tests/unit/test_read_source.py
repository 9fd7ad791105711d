"""From ``dataset.name`` to the rows of an experiment."""

import numpy as np
import pytest
from tfds_sets import encoded, plain

from configs import digits
from sparse_mu import builders, config
from sparse_mu.builders.sources import gathered, read_source


@pytest.fixture
def flat_of():
    def change(**changes):
        nested = digits.get_config().to_dict()
        flat = config.flatten(nested) | {
            f"dataset.{key}": str(value) if key == "data_dir" else value
            for key, value in changes.items()
        }
        for key, value in flat.items():
            config.check_value(key, value)
        return flat

    return change


def test_digits_are_the_first_rows_where_a_limit_is_set(flat_of):
    whole, part = read_source(flat_of()), read_source(flat_of(limit=10))
    np.testing.assert_array_equal(part.train_inputs, whole.train_inputs[:10])
    np.testing.assert_array_equal(part.test_labels, whole.test_labels[:2])
    with pytest.raises(config.ConfigError, match=r"config\.dataset\.image_size = 32: digits are"):
        read_source(flat_of(image_size=32))


def test_a_folder_of_images_becomes_an_experiment(flat_of, tmp_path):
    for part in ("train", "test"):
        for label, name in enumerate(("bird", "cat")):
            (tmp_path / part / name).mkdir(parents=True)
            for row in range(10):
                image = encoded(plain((label, row, part == "test")))
                (tmp_path / part / name / f"{row}.png").write_bytes(image)
    data = builders.build_data(flat_of(name="folder", data_dir=tmp_path, validation=0.2))
    assert data.inputs.shape == (16 + 20, 8, 8, 3) and data.train_rows == 16
    assert data.class_names == ("bird", "cat") and data.name == tmp_path.name
    np.testing.assert_array_equal(data.labels, data.inputs[:, 0, 0, 0])
    np.testing.assert_array_equal(data.inputs[:, 0, 0, 2], [0] * 16 + [1] * 20)
    sized = builders.build_data(flat_of(name="folder", data_dir=tmp_path, image_size=16))
    assert sized.inputs.shape[1:] == (16, 16, 3)


def test_arrays_become_an_experiment(flat_of, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 1), np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(40) % 4)
    data = builders.build_data(flat_of(name="npz", data_dir=tmp_path / "mine.npz", validation=0.0))
    assert data.inputs.shape == (40, 6, 6, 1) and data.train_rows == 32 and data.name == "mine"


def test_rows_are_gathered_in_one_array():
    inputs = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 1), np.uint8)
    inputs.flags.writeable = False
    rows, more = np.array([8, 0, 3]), [inputs[4:6], inputs[:0], inputs[1:2]]
    joined = gathered(inputs, rows, more)
    np.testing.assert_array_equal(joined, np.concatenate([inputs[rows], *more]))
    assert joined.flags.writeable
