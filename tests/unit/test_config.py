"""The rules of a config: all keys, each value, and what must agree between keys."""

import inspect
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import digits
from sparse_mu import config as rules
from sparse_mu.config import ConfigError, check, check_value, flatten, unknown_key
from sparse_mu.manifest import nested
from sparse_mu.settings import every_key

FLAT = flatten(digits.get_config().to_dict())


def refused(match, **changes):
    flat = FLAT | {key.replace("__", "."): value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=match) as info:
        check(nested(flat))
    assert "\n" not in str(info.value)


def test_every_key_stands_in_one_place_with_a_comment():
    lines = inspect.getsource(every_key).splitlines()
    keys = set()
    for above, line in itertools.pairwise(lines):
        name, _, value = line.strip().removeprefix("config.").partition(" = ")
        if line.startswith("    config.") and value != "ConfigDict()":
            assert "  # " in line or above.startswith("    # "), line
            keys.add(name)
    assert keys == set(flatten(every_key().to_dict())) == set(rules.RULES)


def test_every_call_gives_a_config_of_its_own():
    changed = every_key()
    changed.unlearn.finetune.epochs += 1
    assert changed != every_key()


def test_a_checked_config_is_flat_ordered_and_of_one_type_per_key():
    flat = check(nested(FLAT | {"train.warmup_epochs": 0, "forget.classes": [1, 2]}))
    assert list(flat) == list(rules.RULES)
    assert type(flat["train.warmup_epochs"]) is float
    assert flat["forget.classes"] == (1, 2)
    assert check(nested(flat)) == flat


def test_nested_undoes_flatten():
    assert flatten(nested(FLAT)) == FLAT


def test_names_with_commas_are_a_tuple():
    flat = check(nested(FLAT | {"unlearn.methods": ("fisher, finetune",)}))
    assert flat["unlearn.methods"] == ("fisher", "finetune")


@pytest.mark.parametrize("key", rules.RULES)
def test_every_key_is_needed_and_says_what_it_may_be(key):
    rest = {k: v for k, v in FLAT.items() if k != key}
    with pytest.raises(ConfigError, match=f"^config.{key}: is missing; must be "):
        check(nested(rest))


@pytest.mark.parametrize("key", rules.RULES)
@pytest.mark.parametrize("value", [None, True, {}, object(), b"x", float("nan"), 10**400, "\n"])
def test_no_key_takes_nonsense(key, value):
    with pytest.raises(ConfigError) as info:
        check_value(key, value)
    assert str(info.value).startswith(f"config.{key} = ") and "must be " in str(info.value)
    assert "\n" not in str(info.value) and len(str(info.value)) < 400


NUMBERS = [key for key, rule in rules.RULES.items() if float in rule.types]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), -1.0, -1e-300, 1e39])
def test_numbers_are_finite_and_not_negative(key, value):
    with pytest.raises(ConfigError, match="must be a "):
        check_value(key, value)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(list(rules.RULES)), st.data())
def test_any_value_is_taken_or_refused(key, data):
    anything = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
        max_leaves=5,
    )
    value = data.draw(anything)
    try:
        check_value(key, tuple(value) if isinstance(value, list) else value)
    except ConfigError:
        pass


@pytest.mark.parametrize("value", [0, 0.0, 0.9, 1 - 1e-9])
def test_sparsities_from_zero_to_below_one(value):
    check_value("prune.sparsities", (value,))


@pytest.mark.parametrize("value", [1, 1.0, 90, -0.1, float("nan"), True, "0.9", None, (0.9,)])
def test_sparsities_that_are_none(value):
    with pytest.raises(ConfigError, match=r"a tuple of distinct fractions in \[0, 1\)"):
        check_value("prune.sparsities", (value,))


@pytest.mark.parametrize("value", [(3,), ("cat",), (3, "cat", "3+5", "cat+dog"), ("a b", "ü")])
def test_classes_by_number_or_name(value):
    check_value("forget.classes", value)


@pytest.mark.parametrize("value", [-1, 2**31, 1.0, True, "", " ", "a\nb", None, (3,), b"cat"])
def test_classes_that_are_none(value):
    with pytest.raises(ConfigError, match="a tuple of distinct class numbers or names"):
        check_value("forget.classes", (0, value))


def test_empty_choices_are_allowed():
    for key in ("prune.sparsities", "unlearn.methods", "forget.classes"):
        check_value(key, ())


def test_keys_that_must_agree():
    refused("prune.rewind_epoch = 15: must be below train.epochs = 15", prune__rewind_epoch=15)
    refused("train.warmup_epochs = 16: must be at most", train__warmup_epochs=16)
    refused("forget.file = '': must be a .txt, .csv, .npy or .json", forget__scenario="indices")
    refused("forget.file = 'a.txt': must be '' when forget.scenario", forget__file="a.txt")
    only = "forget.count = 3: must be 0 when .* 'indices'; it is read for 'random' or 'class'"
    refused(only, forget__count=3, forget__scenario="indices", forget__file="a.txt")
    refused("forget.classes = .3,.: must be ..", forget__classes=(3,), forget__scenario="random")
    refused("dataset.data_dir = '': must be the TFDS directory", dataset__name="cifar10")
    refused(
        "dataset.validation = 0: must be above 0", dataset__pool="tuning", dataset__validation=0
    )
    second = {"dataset__unlearn_split_seed": 2}
    refused("dataset.validation = 0: must be above 0 when", dataset__validation=0, **second)
    refused("unlearn_split_seed = 2: must be -1 when", dataset__pool="tuning", **second)
    check(nested(FLAT | {"dataset.unlearn_split_seed": 2}))
    stream = {
        "dataset__name": "imagenet2012",
        "dataset__data_dir": "d",
        "dataset__reading": "stream",
    }
    refused("dataset.image_size = 0: must be the side, such as 224", **stream)
    refused("dataset.reading = 'stream': must be 'resident' for digits", dataset__reading="stream")
    refused("train.augment = .*: must be none or crop", train__augment="resized_crop_flip")
    refused("dataset.workers = 2: must be 0 unless", dataset__workers=2)
    check(nested(FLAT | {"forget.scenario": "random", "forget.count": 3}))
    check(nested(FLAT | {"forget.scenario": "class", "forget.count": 3}))
    check(nested(FLAT | {"forget.scenario": "indices", "forget.file": "a.txt"}))


NEAREST = {
    "trails": "did you mean 'trials'",
    "batch_size": "did you mean '",
    "train.epoch": "did you mean 'train.epochs'",
    "train.lr": "; config.train has epochs, batch_size, learning_rate, ",
    "unlearn.finetun.epochs": "did you mean 'unlearn.finetune.epochs'",
    "unlearn.l1sparse.gamma": "did you mean 'unlearn.l1_sparse.gamma'",
    "prune.rewind": "did you mean 'prune.rewind_epoch'",
    "train": "is a group of keys, set one of them: epochs, batch_size, ",
    "unlearn": "set one of them: methods, finetune, ",
    "zzz": "there is no such key",
    "": "is a group of keys, set one of them: seed, trials, dataset, ",
}


@pytest.mark.parametrize("key", NEAREST)
def test_an_unknown_key_is_told_what_is_near(key):
    assert NEAREST[key] in str(unknown_key(key))
