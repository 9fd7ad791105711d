"""My model, my rows to forget: runs that start from a trained model, against the run it is from."""

import json
import shlex
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torch_files import write_pth

from configs import digits
from sparse_mu import builders, config, interop, manifest, masks, models, results
from sparse_mu import run as pipeline
from sparse_mu import workdir as workdirs
from sparse_mu.main import main
from sparse_mu.reading import reading
from sparse_mu.table import to_text
from sparse_mu.types import Model

ROWS, SPARSITY = (3, 14, 15, 92, 65, 35), 0.5  # rows to forget; half of 23,184 weights, exactly
SHRUNK = {
    "trials": 2,
    "dataset.limit": 200,
    "dataset.validation": 0,
    "forget.scenario": "indices",
    "train.epochs": 2,
    "prune.rewind_epoch": -1,
    "prune.sparsities": (SPARSITY,),
    "unlearn.methods": ("finetune",),
    "unlearn.finetune.epochs": 1,
    "evaluate.mia_draws": 1,
    "evaluate.rte_repeats": 0,
}


class Finished:
    """What a run returned, and what it left in its workdir."""

    def __init__(self, folder, rows, summary):
        self.folder, self.summary = folder, summary
        self.rows = {(row["method"], row["sparsity"], row["trial"]): row for row in rows}

    def computed(self, without=()):
        """The rows of trial 0, without seconds and the names of stages."""
        rows = [row for row in manifest.without_times(list(self.rows.values())) if not row["trial"]]
        return {
            (row["method"], row["sparsity"]): {
                k: v
                for k, v in row.items()
                if k != "models" and not any(part in k for part in without)
            }
            for row in rows
        }

    def exported(self):
        """The bytes of every tensor of trial 0, by file."""
        files = sorted((self.folder / "models").glob("*-trial0.safetensors"))
        return {
            file.name: {k: v.tobytes() for k, v in interop.read_state_dict(file).items()}
            for file in files
        }


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "forget.txt"
    file.write_text("# people who asked us to\n" + "\n".join(map(str, ROWS)))
    return file


def flat_of(rows_file, changed):
    return config.check(
        config.flatten(digits.get_config().to_dict())
        | SHRUNK
        | {"forget.file": str(rows_file)}
        | changed
    )


def finish(folder, flat):
    experiment = builders.build(flat)
    with workdirs.held(folder, flat) as workdir:
        rows, digests = pipeline.run_all(experiment, workdir, lambda *_: None, export=True)
        described = manifest.describe(experiment.data, digests, experiment.imported)
        summary = manifest.write_derived(workdir, rows, flat, described)
    return Finished(folder, rows, summary)


@pytest.fixture(scope="module")
def run(tmp_path_factory, rows_file):
    def of(**changed):
        changed = {key.replace("__", "."): value for key, value in changed.items()}
        return finish(tmp_path_factory.mktemp("run"), flat_of(rows_file, changed))

    return of


@pytest.fixture(scope="module")
def trained(run):
    """A run that trains its original."""
    return run()


def original(trained, sparsity):
    return str(trained.folder / "models" / f"original-{sparsity:g}-trial0.safetensors")


@pytest.mark.ci
def test_an_imported_model_gives_the_rows_of_the_run_it_is_from(trained, run):
    imported = run(model__checkpoint=original(trained, 0))
    # to the bit: metrics, gaps and masks; weights of original, retrained and unlearned models
    assert imported.computed() == trained.computed()
    assert imported.exported() == trained.exported()
    assert set(imported.exported()) == {
        f"{method}-{sparsity}-trial0.safetensors"
        for method in ("original", "retrain", "finetune")
        for sparsity in ("0", "0.5")
    }
    first, second = (imported.rows["original", 0.0, trial] for trial in range(2))
    assert first["n_forget"] == len(ROWS) and first["rte_seconds"] is None
    # every trial starts from the one model
    assert {k: v for k, v in first.items() if k.startswith(("ua", "ra", "ta"))} == {
        k: v for k, v in second.items() if k.startswith(("ua", "ra", "ta"))
    }
    other = trained.rows["original", 0.0, 1]
    assert (second["ra"], second["ta"]) != (other["ra"], other["ta"])
    found = imported.summary["manifest"]["imported"]
    assert (found["file"], found["sparsity"]) == ("original-0-trial0.safetensors", 0.0)
    assert "imported" not in trained.summary["manifest"]
    said = "was imported from original-0-trial0.safetensors, the same for every trial."
    assert said in in_words(imported.summary) and "imported" not in in_words(trained.summary)


def in_words(summary):
    return " ".join(to_text(summary, 120, False).split())


@pytest.mark.ci
def test_a_model_that_is_pruned_already_has_one_sparse_arm(trained, run):
    imported = run(model__checkpoint=original(trained, SPARSITY), prune__sparsities=())
    # nor has it a mask to be held against
    without = {"without": ("repruned", "mask_iou", "mask_kappa", "mask_flip")}
    found, expected = (each.computed(**without) for each in (imported, trained))
    assert set(found) == {
        ("retrain", 0.0),
        ("retrain_reseeded", 0.0),
        *((m, SPARSITY) for m in ("original", "retrain", "retrain_reseeded", "finetune")),
    }
    assert found == {arm: expected[arm] for arm in found}  # to the bit
    for name, tensors in imported.exported().items():
        assert tensors == trained.exported()[name]
    summary = imported.summary
    assert set(summary["disparity"]["finetune"]["0.5"]) == {"retrain", "retrain_dense"}
    assert summary["warnings"] == []
    text = in_words(summary)
    assert "(pruned before it was imported)" in text and "no dense original, and no retr" in text
    assert reading(summary).startswith("At 50% sparsity") and "dense" not in reading(summary)
    report = (imported.folder / "report.html").read_text()
    assert "no retrain_repruned, for how its mask was found is not known" in report


def save(folder, model):
    with ocp.StandardCheckpointer() as checkpointer:
        variables = {"params": model.params, **model.net_state}
        checkpointer.save(folder, variables, force=True)
        checkpointer.wait_until_finished()


@pytest.mark.ci
def test_the_command_takes_an_orbax_folder(trained, rows_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept")  # the one of the runs before
    network = builders.build(flat_of(rows_file, {})).network
    like = jax.eval_shape(network.init, jax.random.key(0))
    state_dict = interop.read_state_dict(original(trained, 0))
    model, _ = interop.from_state_dict(state_dict, like)
    save(tmp_path / "mine", model)
    changed = {
        "model.checkpoint": tmp_path / "mine",
        "forget.file": rows_file,
        "prune.sparsities": "()",
        "unlearn.methods": "()",
    }
    given = [f"--config.{key}={value}" for key, value in (SHRUNK | changed).items()]
    folder = tmp_path / "run"
    argv = ["sparse_mu", f"--config={digits.__file__}", f"--workdir={folder}", *given]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "imported from mine, the same for every" in out
    assert err == f"\nreport: {folder / 'report.html'}\n"
    before = rows_of(folder)
    for row in before:
        same = trained.rows[row["method"], 0.0, row["trial"]]
        if row["method"] != "original" or row["trial"] == 0:
            assert row["ta"] == same["ta"]

    # another model in the same place is another original: only what is not from it is found again
    model.params["head"]["bias"] = model.params["head"]["bias"] + np.float32([0] * 9 + [9])
    save(tmp_path / "mine", model)
    assert main(argv) == 0
    names = [stage.name.rpartition("-")[0] for stage in (folder / "stages").iterdir()]
    assert sorted(names) == ["original-0", "original-0", "retrain-0", "retrain_reseeded-0"]
    assert {row["models"] for row in before} & {row["models"] for row in rows_of(folder)} == {
        row["models"] for row in before if row["method"] != "original"
    }


def rows_of(folder):
    """The rows that count: those after everything was judged anew."""
    text = (folder / "results.jsonl").read_text().rpartition(results.line(results.ANEW))[2]
    return [json.loads(line) for line in text.splitlines()]


README = Path(__file__).parents[2] / "README.md"
OWN = ("--config=configs/digits.py", "runs/mine", "model.safetensors", "=images", "rows.txt")


def readme_command(places):
    """The command of the README's section, with the reader's own files in place of its names."""
    section = README.read_text("utf-8").partition("\n## My model, my images")[2]
    command = section.partition("```console\n")[2].partition("```")[0].replace("\\\n", " ")
    for name, place in zip(OWN, places, strict=True):
        assert command.count(name) == 1
        command = command.replace(name, place)
    argv = shlex.split(command)
    assert argv[:3] == ["python", "-m", "sparse_mu.main"]
    return argv[2:]


def test_my_model_my_images_my_list_of_rows(tmp_path, capsys):
    """The README's command, shrunk: a folder of images, a file of weights, paths to forget."""
    values, labels = load_digits(return_X_y=True)
    pictures = np.round(np.asarray(values)[:150] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    for row, (picture, label) in enumerate(zip(pictures, labels, strict=False)):
        folder = tmp_path / "images" / ("test" if row >= 120 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{row:03}.png")
    ids = [f"train/{labels[row]}/{row:03}.png" for row in ROWS]
    (tmp_path / "rows.txt").write_text("\n".join(ids))
    network = models.SmallCNN(10, models.default_form("cpu"))
    model = Model(*models.init_of(network, (1, 8, 8, 3))(jax.random.key(5)))
    interop.write_state_dict(tmp_path / "model.safetensors", interop.to_state_dict(model))
    config_flag = f"--config={digits.__file__}"
    files = (str(tmp_path / name) for name in ("run", "model.safetensors", "images", "rows.txt"))
    run, weights, images, rows = files
    argv = readme_command((config_flag, run, weights, f"={images}", rows))
    kept = ("trials", "train.epochs", "prune.sparsities", "unlearn.methods")
    kept += (
        "prune.rewind_epoch",
        "unlearn.finetune.epochs",
        "evaluate.mia_draws",
        "evaluate.rte_repeats",
    )
    argv += [f"--config.{key}={SHRUNK[key]}" for key in kept] + ["--config.trials=1"]

    assert main(argv) == 0
    assert "imported from model.safetensors" in capsys.readouterr().out
    for row in rows_of(tmp_path / "run"):
        assert (row["n_forget"], row["n_retain"]) == (len(ROWS), 120 - len(ROWS))
    exported = tmp_path / "run" / "models"
    found, written = (
        interop.read_state_dict(exported / f"{method}-0-trial0.safetensors")
        for method in ("original", "finetune")
    )
    for name, value in interop.to_state_dict(model).items():
        np.testing.assert_array_equal(found[name], value)
    assert (written["fc.weight"] != found["fc.weight"]).any()
    pruned = interop.read_state_dict(exported / f"finetune-{SPARSITY}-trial0.safetensors")
    assert (pruned["conv1.weight_orig"][pruned["conv1.weight_mask"] == 0] == 0).all()

    (tmp_path / "rows.txt").write_text("\n".join([*ids, "train/3/999.png", "me.png"]))
    assert main([arg.replace(run, f"{run}-never") for arg in argv]) == 2
    said = capsys.readouterr().err
    assert "train/3/999.png" in said and said.count("\n") == 1
    assert not Path(f"{run}-never").exists()


REFUSED = {
    "prune.rewind_epoch=0": (
        2,
        "config.prune.rewind_epoch = 0: must be -1 with model.checkpoint, unless prune.sparsities "
        "is (): an imported model has no early weights",
    ),
    "prune.method=synflow": (2, "config.prune.method = 'synflow': must be 'omp' with model.checkp"),
    "prune.method=imp": (2, "config.prune.method = 'imp': must be 'omp' with model.checkpoint, "),
    "model.checkpoint=/nowhere/a.pth": (1, "config.model.checkpoint = '/nowhere/a.pth': there is"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_an_imported_model_cannot_do(rows_file, tmp_path, capsys, override):
    shrunk = SHRUNK | {"forget.file": rows_file, "model.checkpoint": "mine.safetensors"}
    given = [f"--config.{key}={value}" for key, value in shrunk.items()]
    folder = tmp_path / "never"
    argv = ["sparse_mu", f"--config={digits.__file__}", f"--workdir={folder}", *given]
    code, said = REFUSED[override]
    assert main([*argv, f"--config.{override}"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1, err
    assert not folder.exists()


@pytest.mark.slow  # a ResNet-20s to compile
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_an_official_checkpoint_of_a_resnet(rows_file, tmp_path, monkeypatch, sparsity):
    few = {"trials": 1}
    data = builders.build_data(flat_of(rows_file, few))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(data.labels), 8, 8, 3), np.uint8)  # the sides are free
    monkeypatch.setattr(builders, "build_data", lambda flat: data._replace(inputs=images))
    changed = few | {
        "dataset.name": "cifar10",
        "dataset.data_dir": "not read",
        "model.name": "resnet20s",
        "model.checkpoint": str(tmp_path / "0model_SA_best.pth.tar"),
        "train.epochs": 1,
        "prune.sparsities": (),
    }
    flat = flat_of(rows_file, changed)
    network = builders.build(flat | {"model.checkpoint": ""}).network
    model = network.init(jax.random.key(4))
    kept = masks.from_scores(jax.tree.map(abs, model.params), sparsity)
    model = model._replace(params=masks.apply(kept, model.params))
    state_dict = interop.to_state_dict(model, kept, channels=network.channels)
    write_pth(tmp_path / "0model_SA_best.pth.tar", {"epoch": 182, "state_dict": state_dict})

    finished = finish(tmp_path / "run", flat)

    def exported(method):
        file = f"{method}-{sparsity:g}-trial0.safetensors"
        return interop.read_state_dict(tmp_path / "run" / "models" / file)

    row = finished.rows["original", sparsity, 0]
    assert row["mask_sparsity"] == sparsity and not row["diverged"]
    found = exported("original")
    assert found.keys() == state_dict.keys()
    for name, value in state_dict.items():
        np.testing.assert_array_equal(found[name], value)
    unlearned = exported("finetune")
    kernel = "layer1.0.conv1.weight" + ("_orig" if sparsity else "")
    assert (unlearned[kernel] != state_dict[kernel]).any()
    if sparsity:
        mask = state_dict["layer1.0.conv1.weight_mask"]
        assert (unlearned[kernel][mask == 0] == 0).all()
