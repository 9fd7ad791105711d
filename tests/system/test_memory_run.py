"""Whole runs where memory is short, or where one trial diverges: what is marked, what is the same.

The command's own function, in process, on shrunken digits whose trials are vmapped on one device.
"""

import functools
import json

import jax
import numpy as np
import pytest

from configs import digits
from sparse_mu import builders, main
from sparse_mu.execution import over_trials

pytestmark = [pytest.mark.ci, pytest.mark.timeout(900)]

TRIALS = 2
SMALL = {
    "trials": TRIALS,
    "dataset.limit": 300,
    "train.epochs": 1,
    "prune.rewind_epoch": 0,
    "unlearn.methods": "finetune,fisher",
    "unlearn.finetune.epochs": 1,
    "evaluate.mia_draws": 1,
    "evaluate.rte_repeats": 0,
}
PLENTY = 2**40


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs the command in a folder, with an experiment that is built once and then changed."""
    folder = tmp_path_factory.mktemp("memory")
    build = functools.cache(lambda config, build=builders.build: build(dict(config)))
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]

    def run(name, change):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builders, "start_backend", lambda flat: None)  # conftest has started it
            patch.setattr(builders, "build", lambda flat: change(build(tuple(flat.items()))))
            argv = ["main", f"--config={digits.__file__}", f"--workdir={folder / name}", *flags]
            return main.main([*argv, "--export"]), folder / name

    return run


@functools.cache
def together(free):
    """All trials vmapped on one device that has so many bytes free."""
    return over_trials(jax.devices()[:1], per_device=TRIALS, room=lambda: free)


def unchanged(experiment):
    whole = together(PLENTY)
    return experiment._replace(execution=whole, judging=whole)


@pytest.fixture(scope="module")
def whole(command):
    code, folder = command("whole", unchanged)
    assert code == 0
    return folder


def rows_of(folder):
    """Rows by what they are of, without seconds."""
    rows = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return {
        (row["method"], row["sparsity"], row["trial"]): {
            key: value for key, value in row.items() if not key.endswith(("_seconds", "check"))
        }
        for row in rows
    }


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def chunks_of(folder):
    found = {}
    for path in (folder / "stages").glob("*/meta.json"):
        meta = json.loads(path.read_text())
        meta = meta.get("meta", meta)
        found[path.parent.name.rpartition("-")[0]] = (meta.get("chunk"), meta.get("halved"))
    return found


def stages_of(folder):
    return {path.name for path in (folder / "stages").iterdir()}


# ---- memory ----------------------------------------------------------------------------------


def test_with_enough_memory_nothing_is_marked_and_the_chunk_is_what_was_asked_for(whole):
    assert not any(row["halved"] for row in rows_of(whole).values())
    for chunk, halved in chunks_of(whole).values():
        assert chunk["trials"] == TRIALS and chunk["bytes"] > 0 and not halved
    assert not any("memory" in line for line in summary_of(whole)["warnings"])


def test_a_run_with_half_the_memory_ends_with_its_rows_marked(command, whole, caplog):
    free = int(0.7 * chunks_of(whole)["original-0"][0]["bytes"])  # of one trial, not of two

    def change(experiment):
        return experiment._replace(execution=together(free), judging=together(PLENTY))

    code, folder = command("half", change)
    assert code == 0
    assert stages_of(folder) == stages_of(whole)  # no fingerprint depends on memory
    rows, expected = rows_of(folder), rows_of(whole)
    assert rows.keys() == expected.keys() and all(row["halved"] for row in rows.values())
    chunks = chunks_of(folder)
    assert all(halved is (chunk["trials"] < TRIALS) for chunk, halved in chunks.values())
    trained = {name for name in chunks if not name.startswith("fisher")}  # that needs less
    assert trained == {name for name in chunks if chunks[name][1]}
    line = "memory was short in, or before, every arm"
    assert sum(warning.startswith(line) for warning in summary_of(folder)["warnings"]) == 1
    assert "<th>halved</th>" in (folder / "report.html").read_text()
    assert any("goes on with" in line for line in caplog.messages)
    for key, row in rows.items():
        # rounding, amplified by training and by Fisher's noise, may turn a few of 165 rows
        assert row["ra"] == pytest.approx(expected[key]["ra"], abs=0.1), key
        assert row["models"] == expected[key]["models"]


def test_only_the_rows_are_marked_where_only_forward_passes_are_short(command, whole):
    # the images of a batch of 512 as floats and what the network makes of them
    def change(experiment):
        return experiment._replace(execution=together(PLENTY), judging=together(2**20))

    code, folder = command("judged", change)
    assert code == 0
    assert chunks_of(folder) == chunks_of(whole)
    assert all(row["halved"] for row in rows_of(folder).values())


def test_descent_without_room_for_one_trial_names_its_key_and_the_run_can_go_on(
    command, whole, capsys
):
    def change(experiment):
        return experiment._replace(execution=together(1000), judging=together(PLENTY))

    code, folder = command("none", change)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 1
    assert error.startswith("error: original, dense: needs ")
    assert "with 1 trial at a time; lower config.train.batch_size, or take" in error
    assert not (folder / "results.jsonl").exists()
    code, folder = command("none", unchanged)  # on a machine with more
    assert code == 0 and rows_of(folder) == rows_of(whole)


def test_memory_that_runs_out_is_tried_once_more_and_marked_from_there(command, whole, caplog):
    epochs = []

    def exhausting(execution):
        def compiling(function, *, donate):
            program = execution.compile(function, donate=donate)

            def run(*given):
                epochs.extend([1] if donate else [])
                if (
                    donate and len(epochs) == 6
                ):  # after five dense arms, in the training that prunes
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
                return program(*given)

            run.lower = program.lower
            return run

        return execution._replace(compile=compiling)

    def change(experiment):
        return experiment._replace(execution=exhausting(together(PLENTY)), judging=together(PLENTY))

    code, folder = command("exhausted", change)
    assert code == 0
    assert sum("memory ran out" in line for line in caplog.messages) == 1
    rows, expected = rows_of(folder), rows_of(whole)
    marked = {key for key, row in rows.items() if row["halved"]}
    # what is made from the sparse originals, or with their masks; retrain_repruned has its own
    from_there = ("original", "retrain", "retrain_reseeded", "finetune", "fisher")
    assert marked == {(method, 0.9, t) for method in from_there for t in range(TRIALS)}
    assert {key: rows[key] for key in rows.keys() - marked} == {
        key: expected[key] | {k: v for k, v in rows[key].items() if k.startswith("gap_")}
        for key in rows.keys() - marked  # a gap is to rows that may be marked
    }


# ---- one trial that diverges -----------------------------------------------------------------


def poisoned(method):
    """Trial 1 takes a step that is not finite; what the method adapts itself stays."""

    def adapt(hyper, trials):
        hyper = hyper if method.adapt is None else method.adapt(hyper, trials)
        field = "learning_rate" if hasattr(hyper, "learning_rate") else "alpha"
        value = np.asarray(getattr(hyper, field))
        return hyper._replace(**{field: np.where(trials == 1, np.float32(np.inf), value)})

    return method._replace(adapt=adapt)


def with_poisoned_methods(experiment):
    methods = {name: poisoned(method) for name, method in experiment.methods.items()}
    return unchanged(experiment)._replace(methods=methods)


def with_poisoned_training(experiment):
    return unchanged(experiment)._replace(training=poisoned(experiment.training))


@pytest.mark.parametrize(
    ("change", "hit_arms"),
    [(with_poisoned_methods, {"finetune", "fisher"}), (with_poisoned_training, None)],
)
def test_a_diverged_trial_is_marked_and_counted_and_the_others_keep_their_bits(
    command, whole, change, hit_arms
):
    code, folder = command(change.__name__, change)
    assert code == 0
    rows, expected = rows_of(folder), rows_of(whole)
    assert rows.keys() == expected.keys()
    for (method, sparsity, trial), row in rows.items():
        is_hit = trial == 1 and (hit_arms is None or method in hit_arms)
        assert row["diverged"] is is_hit, (method, sparsity, trial)
        if not is_hit:
            assert row == expected[method, sparsity, trial]
    exported = {path.name for path in (whole / "models").iterdir()}
    assert exported == {path.name for path in (folder / "models").iterdir()} and exported
    for name in exported:  # weights, statistics and masks, to the bit
        same = (folder / "models" / name).read_bytes() == (whole / "models" / name).read_bytes()
        is_hit = "trial1" in name and (hit_arms is None or name.split("-")[0] in hit_arms)
        assert same is not is_hit, name
    summary = summary_of(folder)
    cell = summary["cells"]["finetune"]["0"]["ra"]
    assert (cell["diverged"], cell["n"]) == (1, TRIALS)
    line = "finetune at sparsity 0: 1 of 2 trials diverged (trial 1); counted at the last finite"
    assert sum(warning.startswith(line) for warning in summary["warnings"]) == 1
