"""Thousands of generated inputs: each is refused in one line, or means an experiment that can run.

In this process first, through the command's own entry; then some as processes of their own. What is
generated stands in ``bad_*.py``, what is held in ``fuzzing.py``.
"""

import itertools
import os

import bad_configs
import bad_images
import bad_lists
import bad_models
import pytest
from fuzzing import Bench, run_examples, stand_still

KINDS = {  # kind: (a valid case, generated ones, how many are drawn in continuous integration,
    # and how many different ones of them must be refused: the others are valid or drawn twice)
    "config": (lambda: bad_configs.VALID, bad_configs.CONFIGS, 1000, 700),
    "list.txt": (lambda: bad_lists.VALID[".txt"], bad_lists.lists(".txt"), 200, 150),
    "list.csv": (lambda: bad_lists.VALID[".csv"], bad_lists.lists(".csv"), 200, 150),
    "list.json": (lambda: bad_lists.VALID[".json"], bad_lists.lists(".json"), 200, 140),
    "list.npy": (lambda: bad_lists.VALID[".npy"], bad_lists.lists(".npy"), 200, 150),
    "npz": (lambda: bad_images.VALID_NPZ, bad_images.NPZ, 250, 150),
    "folder": (lambda: bad_images.VALID_FOLDER, bad_images.FOLDERS, 250, 110),
    "safetensors": (lambda: bad_models.valid("safetensors"), bad_models.SAFETENSORS, 250, 200),
    "pth": (lambda: bad_models.valid("pth"), bad_models.PTH, 250, 200),
    "orbax": (lambda: bad_models.valid("orbax"), bad_models.ORBAX, 150, 70),
}
FEW = 15  # of each kind in the default run
PROCESSES = 3  # of each kind


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The command with its run standing still, in a folder where nothing must appear."""
    stand_still(monkeypatch)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield lambda kind: Bench(tmp_path / "bench", KINDS[kind][0]())
    assert os.listdir() == []  # what a pickle would have made


def fuzz(made, kind, count):
    numbers = itertools.count()  # every second one starts a workdir of its own
    run_examples(KINDS[kind][1], count, lambda case: made.check(case, new=next(numbers) % 2 == 0))


def test_what_is_asked_of_each_kind_makes_two_thousand():
    assert sum(refused for _, _, _, refused in KINDS.values()) >= 2000


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_of_each_kind(bench, kind):
    made = bench(kind)
    fuzz(made, kind, FEW)
    assert len(made.seen) >= 10 and len(made.refused) >= 5


@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_many_of_each_kind(bench, kind):
    made = bench(kind)
    fuzz(made, kind, KINDS[kind][2])
    assert len(made.refused) >= KINDS[kind][3]


def in_processes(bench, kind, count):
    """The first ``count`` refused cases of a kind, each as a process of its own."""
    made, done = bench(kind), []

    def check(case):
        if len(done) < count and case.digest() not in made.seen and made.in_a_process(case):
            done.append(case)

    run_examples(KINDS[kind][1], 10 * count, check)
    assert len(done) == count


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["config", "pth", "orbax"])
def test_a_process_of_its_own_says_the_same(bench, kind):
    in_processes(bench, kind, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thirty_processes_say_the_same(bench, kind):
    in_processes(bench, kind, PROCESSES)
    assert PROCESSES * len(KINDS) == 30
