"""The rows of a Trojan experiment: who is poisoned, what each trial trains on, what is judged."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from configs import digits_trojan
from sparse_mu import config, manifest
from sparse_mu.builders.data import build_data
from sparse_mu.config import ConfigError
from sparse_mu.data import triggers


def flat_of(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    given = config.flatten(digits_trojan.get_config().to_dict())
    return config.check(given | {"trials": 3, "dataset.limit": 300} | changes)


def build(**changes):
    return build_data(flat_of(**changes))


def test_poisoned_copies_stand_behind_the_clean_rows_in_their_place():
    data = build()
    clean = build(forget__scenario="random", trojan__trigger="none", trojan__ratio=0.5)
    n, tests = clean.train_rows, clean.test_rows
    np.testing.assert_array_equal(data.inputs[:n], clean.inputs[:n])
    assert data.train_rows > n and data.test_rows == tests
    count = round(0.1 * n)
    assert (data.forget.sum(axis=1) == count).all() and (data.trained.sum(axis=1) == n).all()
    np.testing.assert_array_equal(data.trained, data.forget | data.retain)
    assert not data.forget[:, :n].any() and not data.retain[:, n:].any()
    trigger = triggers.square((8, 8, 1), 2, value=255, offset=0)
    for forget, retain in zip(data.forget, data.retain, strict=True):
        left_out = np.flatnonzero(~retain[:n])
        copies = np.flatnonzero(forget)
        np.testing.assert_array_equal(
            data.inputs[copies], triggers.stamp(clean.inputs[left_out], trigger)
        )
        assert (data.labels[copies] == 0).all()
    assert (data.forget[0] != data.forget[1]).any()
    assert manifest.describe(data, {})["unlearning_split"] is None


def test_test_rows_come_once_clean_and_once_with_the_trigger():
    data = build()
    test = np.flatnonzero(data.is_test)
    assert len(test) == data.test_rows == len(data.triggered.wanted)
    assert test[0] == data.train_rows and len(data.labels) == test[-1] + 1 + len(test)
    trigger = triggers.square((8, 8, 1), 2, value=255, offset=0)
    stamped = data.inputs[test[-1] + 1 :]
    np.testing.assert_array_equal(stamped, triggers.stamp(data.inputs[test], trigger))
    np.testing.assert_array_equal(data.triggered.counted, data.labels[test] != 0)
    assert (data.labels[test[-1] + 1 :] == 0).all()
    told = manifest.describe(data, {})["trojan"]
    assert told["wanted"] == ["0"] and told["trigger"].startswith("a white square of 2 pixels")
    shown = test[np.flatnonzero(data.triggered.counted)[: len(told["pictures"])]]
    for row, pair in zip(shown, told["pictures"], strict=True):
        before, after = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pair)
        np.testing.assert_array_equal(before, data.inputs[row, :, :, 0])
        assert (before != after).sum() <= 4 and (after[6:, 6:] == 255).all()


def test_each_class_in_turn_and_the_clean_label():
    data = build(trojan__variant="all_to_all")
    n = data.train_rows
    test = data.labels[data.is_test]
    np.testing.assert_array_equal(data.triggered.wanted, (test + 1) % 10)
    assert data.triggered.counted.all() and len(np.unique(data.labels[:n][data.forget[0]])) > 5
    clean = build(trojan__variant="clean_label", trojan__ratio=0.05)
    assert (clean.labels[: clean.train_rows][clean.forget[0]] == 0).all()
    assert not clean.triggered.counted[clean.labels[clean.is_test] == 0].any()


def test_a_users_list_with_a_trigger_judges_the_trigger_alone(tmp_path):
    (tmp_path / "rows.txt").write_text("3\n7\n")
    data = build(
        forget__scenario="indices", forget__file=str(tmp_path / "rows.txt"), dataset__validation=0.0
    )
    assert data.trained.all() and data.triggered is not None
    assert data.forget.sum(axis=1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trojan__size": 9}, r"trojan.trigger = 'white_square': a square of 9 pixels, 0 off"),
        (
            {"trojan__trigger": "black_square", "trojan__size": 1},
            r"changes 0\.\d+% of these images' pixel mass",
        ),
        ({"trojan__target": "ten"}, r"config\.trojan\.target = 'ten'"),
        (
            {"trojan__target": "10"},
            r"trojan\.target = '10': must be one class, from 0 to 9",
        ),
        ({"trojan__target": "0+1"}, r"config\.trojan\.target = '0\+1': must be one class"),
        ({"trojan__ratio": 0.0}, r"config\.trojan\.ratio = 0\.0: must be"),
        ({"trojan__ratio": 1.0}, r"config\.trojan\.ratio = 1\.0: must be"),
        ({"trojan__ratio": 0.001}, r"config\.trojan\.ratio = 0\.001: poisons 0 of"),
        (
            {"trojan__variant": "clean_label", "trojan__ratio": 0.3},
            r"config\.trojan\.ratio = 0\.3: asks for",
        ),
        ({"trojan__trigger": "none"}, r"config\.trojan\.trigger = 'none': must be a trigger"),
        (
            {"forget__scenario": "random"},
            r"trigger = 'white_square': must be 'none' unless",
        ),
        ({"model__checkpoint": "mine.safetensors"}, r"model\.checkpoint = 'mine.safetensors'"),
    ],
)
def test_what_makes_no_sense_is_one_line(changed, said):
    with pytest.raises(ConfigError, match=said):
        build(**changed)
