"""The rows of an experiment from a config: splits, forget sets of every kind, copies."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_mu import manifest
from sparse_mu.builders.data import build_data
from sparse_mu.config import ConfigError, check, flatten
from sparse_mu.data import sources
from sparse_mu.data.splits import hold_out, two_splits

DIGITS = Path(__file__).parents[2] / "configs" / "digits.py"
FLAT = flatten(runpy.run_path(str(DIGITS))["get_config"]().to_dict())
NAMES = ("ant", "bee", "cat")
N, M = 120, 30


@pytest.fixture
def pictures(monkeypatch):
    """Stands in for the digits: 120 training and 30 test images of three classes, with ids."""
    rng = np.random.default_rng(0)
    source = sources.Source(
        name="pets",
        train_inputs=rng.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8),
        train_labels=rng.permutation(np.repeat(np.arange(3), N // 3)).astype(np.int32),
        train_ids=[f"pet_{row:03d}" for row in rng.permutation(N)],
        test_inputs=rng.integers(0, 256, (M, 16, 16, 3), dtype=np.uint8),
        test_labels=np.repeat(np.arange(3), M // 3).astype(np.int32),
        class_names=NAMES,
    )
    monkeypatch.setattr(sources, "digits", lambda: source)
    return source


def build(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return build_data(check(manifest.nested(FLAT | {"trials": 4} | changes)))


def test_one_split_trains_on_every_row(pictures):
    data = build()
    train, _ = hold_out(pictures.train_labels, 0.4, 1)
    assert data.train_rows == len(train)
    np.testing.assert_array_equal(data.inputs[: len(train)], pictures.train_inputs[train])
    np.testing.assert_array_equal(data.inputs[len(train) :], pictures.test_inputs)
    assert data.trained.all()
    np.testing.assert_array_equal(data.retain, ~data.forget)
    assert data.forgotten_classes == ((0,), (1,), (2,), (0,))
    assert manifest.describe(data, {})["unlearning_split"] is None


def test_the_second_split_of_the_same_seed_is_the_first(pictures):
    for left, right in zip(build(), build(dataset__unlearn_split_seed=1), strict=True):
        assert np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


@pytest.mark.parametrize("scenario", ["class", "random"])
def test_the_second_split_is_the_one_unlearned(pictures, scenario):
    data = build(dataset__unlearn_split_seed=2, forget__scenario=scenario)
    split = two_splits(pictures.train_labels, 0.4, 1, 2)
    assert data.train_rows == len(split.rows) == data.trained.shape[1] < N
    np.testing.assert_array_equal(data.inputs[: len(split.rows)], pictures.train_inputs[split.rows])
    np.testing.assert_array_equal(data.trained, np.tile(split.trained, (4, 1)))
    np.testing.assert_array_equal(data.forget | data.retain, np.tile(split.unlearned, (4, 1)))
    assert not (data.forget & data.retain).any()
    labels = data.labels[: data.train_rows]
    if scenario == "class":
        np.testing.assert_array_equal(data.forget[2], split.unlearned & (labels == 2))
    else:  # the draw of a run on the second split alone
        alone = build(dataset__split_seed=2, forget__scenario=scenario)
        np.testing.assert_array_equal(data.forget[:, split.unlearned], alone.forget)
    said = manifest.describe(data, {})["unlearning_split"]
    unseen = [int((of & ~split.trained).sum()) for of in data.forget]
    assert said["forget_never_trained_on"] == unseen and sum(unseen) > 0
    assert said["trained_on"] == split.trained.sum()
    both = np.array(unseen) + said["retain_never_trained_on"]
    assert (both == (split.unlearned & ~split.trained).sum()).all()


def test_classes_by_name_and_joined(pictures):
    data = build(forget__classes=("cat", "ant+bee", 1))
    assert data.forgotten_classes == ((2,), (0, 1), (1,), (2,))
    labels = data.labels[: data.train_rows]
    np.testing.assert_array_equal(data.forget[1], labels != 2)


def test_some_rows_of_a_class(pictures):
    data = build(forget__classes=("cat", "bee"), forget__count=5)
    assert data.forgotten_classes == ((),) * 4  # the test set keeps the class
    assert (data.forget.sum(axis=1) == 5).all()
    labels = data.labels[: data.train_rows]
    assert [set(labels[of]) for of in data.forget] == [{2}, {1}, {2}, {1}]
    assert not np.array_equal(data.forget[0], data.forget[2])  # a draw for each trial
    whole = build(forget__count=24)  # as many as the class has: the class as a whole
    assert whole.forgotten_classes == ((0,), (1,), (2,), (0,))
    np.testing.assert_array_equal(whole.forget, build().forget)


def listed(path, content):
    path.write_text(content)
    return {"forget__scenario": "indices", "forget__file": str(path)}


def test_rows_and_ids_of_a_file(pictures, tmp_path):
    trained = hold_out(pictures.train_labels, 0.4, 1)[0][[5, 1, 9]]
    ids = "\n".join(pictures.train_ids[row] for row in trained)
    by_id = build(**listed(tmp_path / "ids.txt", ids))
    by_row = build(**listed(tmp_path / "rows.csv", "row\n" + "\n".join(map(str, trained))))
    np.testing.assert_array_equal(by_id.forget, by_row.forget)
    np.testing.assert_array_equal(np.flatnonzero(by_id.forget[3]), [1, 5, 9])
    assert by_id.forgotten_classes == ((),) * 4


def test_what_cannot_be_forgotten(pictures, tmp_path):
    def refused(match, **changes):
        with pytest.raises(ConfigError, match=match) as info:
            build(**changes)
        assert "\n" not in str(info.value)

    hint = r"^config.forget.classes: forget class 'cta' does not occur \(did you mean 'cat'\?\)"
    refused(hint, forget__classes=("cta",))
    refused("^config.forget.classes: forget class 3 does not occur", forget__classes=(3,))
    refused("covers all 72 training rows", forget__classes=("ant+bee+cat",))
    refused(r"count: .*allowed: 1 to 24 rows, those of class 0", forget__count=25)
    held = hold_out(pictures.train_labels, 0.4, 1)[1][0]
    pool = "belong to the tuning pool; set config.dataset.validation=0"
    refused(pool, **listed(tmp_path / "pool.txt", pictures.train_ids[held]))
    unknown = (
        "^config.forget.file: .*'pet_x' is not the id of a training row of pets, nor are 1 more"
    )
    refused(unknown, **listed(tmp_path / "ids.txt", "pet_x\npet_000\nx"))


def test_copies_are_named_by_id_and_reach_the_manifest(pictures):
    train, _ = hold_out(pictures.train_labels, 0.4, 1)
    labels = pictures.train_labels[train]
    ours, theirs = train[labels == 0][3], train[labels == 1][4]
    pictures.train_inputs[theirs] = pictures.train_inputs[ours]
    pictures.test_inputs[7] = pictures.train_inputs[ours]
    found = manifest.describe(build(), {})["duplicates"]
    assert [of_trial["exact"] for of_trial in found["trials"]] == [1, 1, 0, 1]
    names = {"forget": pictures.train_ids[ours], "copy": pictures.train_ids[theirs]}
    assert found["trials"][0]["first"] == [
        {"kind": "exact", **names, "where": "retain"},
        {"kind": "exact", "forget": names["forget"], "copy": 7, "where": "test"},
    ]
    skipped = build(forget__duplicates="skip")
    assert skipped.copies is None and manifest.describe(skipped, {})["duplicates"] is None


# which images a listed row number means, by their pixels: image r of the user is all r

OWN = 50


def own_npz(root):
    """One part of 50 images, of which hold_out takes 10 as test rows."""
    images = np.repeat(np.arange(OWN, dtype=np.uint8), 64).reshape(OWN, 8, 8, 1)
    np.savez(root / "one.npz", images=images, labels=np.arange(OWN) % 2)
    return {"dataset__name": "npz", "dataset__data_dir": str(root / "one.npz")}


def own_npz_of_two_parts(root):
    images = np.repeat(np.arange(OWN, dtype=np.uint8), 64).reshape(OWN, 8, 8, 1)
    labels = np.arange(OWN) % 2
    given = {"train_images": images, "train_labels": labels}
    tests = {"test_images": images[-20:] + 100, "test_labels": np.arange(20) // 10}
    np.savez(root / "two.npz", **given, **tests)
    return {"dataset__name": "npz", "dataset__data_dir": str(root / "two.npz")}


def own_folder(root):
    for row in range(OWN + 20):
        part, label = ("train", "ab"[row // 25]) if row < OWN else ("test", "ab"[row % 2])
        (root / part / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (row,) * 3).save(root / part / label / f"{row:02d}.png")
    return {"dataset__name": "folder", "dataset__data_dir": str(root)}


def forgotten(path, numbers, **changes):
    """The numbers of the forgotten images, read from their pixels."""
    path.write_text("\n".join(map(str, numbers)))
    data = build(forget__scenario="indices", forget__file=str(path), **changes)
    inputs = data.inputs[: data.train_rows][data.forget[0]]
    assert (inputs == inputs[:, :1, :1, :1]).all()
    return inputs[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("limit", [0, 25])
@pytest.mark.parametrize("pool", [0.0, 0.2])
@pytest.mark.parametrize("made", [own_npz, own_npz_of_two_parts, own_folder])
def test_a_listed_number_is_the_users_own(tmp_path, made, limit, pool):
    own = made(tmp_path) | {"dataset__limit": limit, "dataset__validation": pool}
    labels = np.arange(OWN) // 25 if made is own_folder else np.arange(OWN) % 2
    train = hold_out(labels, 0.2, 0)[0] if made is own_npz else np.arange(OWN)
    if limit:
        train = train[np.arange(limit) * len(train) // limit]
    kept, pooled = (train[rows] for rows in hold_out(labels[train], pool, 1))
    listed = tmp_path / "rows.txt"
    wanted = kept[[2, 7, 11]].tolist()
    # so that a place would not pass for a number
    assert (wanted != [2, 7, 11]) == bool(limit or pool or made is own_npz)
    assert forgotten(listed, wanted[::-1], **own) == wanted
    if made is own_npz:  # ids say the same
        assert forgotten(listed, [f"row_{row}" for row in wanted], **own) == wanted
    no_row = "is not the number of a training row of .*held out as a test row, or lies outside"
    for outside in [row for row in range(-1, OWN + 2) if row not in train]:
        refusal = no_row if limit or made is own_npz else "out of range; allowed: 0 to 49"
        with pytest.raises(ConfigError, match=rf"^config\.forget\.file: .*{refusal}") as info:
            forgotten(listed, [*wanted, outside], **own)
        assert "\n" not in str(info.value) and str(outside) in str(info.value)
    if pool:
        with pytest.raises(ConfigError, match=f"row {pooled[3]}, are not trained on here"):
            forgotten(listed, [*wanted, *pooled[3:]], **own)


def test_copies_of_rows_without_ids_have_the_users_numbers(tmp_path):
    own = own_npz_of_two_parts(tmp_path) | {"dataset__limit": 25}
    found = np.load(own["dataset__data_dir"])
    given = {name: found[name].copy() for name in found.files}
    given["train_images"][6] = given["train_images"][4] = np.arange(64).reshape(8, 8, 1)
    np.savez(own["dataset__data_dir"], **given)
    (tmp_path / "rows.txt").write_text("4")
    changes = {"forget__scenario": "indices", "forget__file": str(tmp_path / "rows.txt")}
    copies = build(**own, **changes, dataset__validation=0.0).copies
    exact = [pair for pair in copies.trials[0].first if pair.kind == "exact"]
    assert [(pair.forget, pair.copy) for pair in exact] == [(4, 6)]
