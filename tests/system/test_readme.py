"""The README, run: its Python blocks and commands, its bridges to other libraries."""

import functools
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import sparse_mu
from configs import cifar10_resnet20s
from experiments import benchmark
from sparse_mu import arguments, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAIN_COMMAND = "python -m sparse_mu.main --config=configs/digits.py --workdir=runs/digits"
TEST_COMMAND = "python -m pytest"
LINES = 15
BRIDGES = {
    "Flax linen": sparse_mu.convolution_kernels,
    "Flax nnx": sparse_mu.convolution_kernels,
    "Equinox": sparse_mu.convolution_kernels,
    "A dict of arrays, and your own loss": sparse_mu.matrices,
    "Integer tokens": sparse_mu.matrices,
}


def read_blocks() -> dict[tuple[str, str], list[str]]:
    """Python blocks by (section, subsection), in order; those before a subsection under ""."""
    found, section, part = {}, "", ""
    pattern = r"^(#{2,3}) ([^\n]+)$|^```(\w*)\n(.*?)^```$"
    for match in re.finditer(pattern, README, re.MULTILINE | re.DOTALL):
        level, title, language, code = match.groups()
        if level == "##":
            section, part = title, ""
        elif level == "###":
            part = title
        elif language == "python":
            found.setdefault((section, part), []).append(code)
    return found


BLOCKS = read_blocks()
BRIDGE_SECTION = "In your own training loop"


@functools.cache
def namespace(section: str, part: str) -> dict:
    """What a reader has after running a section's setup and then the blocks of one part."""
    names = dict(namespace(section, "")) if part else {}
    # a reader's own code may add a bias to a batch, whatever the tests of the package demand
    with jax.numpy_rank_promotion("allow"):
        for code in BLOCKS[section, part]:
            exec(compile(code, f"README.md, {part or section}", "exec"), names)
    return names


def console_lines(text: str) -> list[str]:
    """Every line of the console blocks, continued lines joined."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture
def bridge(request):
    """The names of one bridge: apply_fn or loss_fn, model, masks, and the states it ends with."""
    with jax.numpy_rank_promotion("allow"):
        yield namespace(BRIDGE_SECTION, request.param)


def each_bridge(test):
    return pytest.mark.parametrize("bridge", BRIDGES, indirect=True)(test)


def l1_norm(state) -> float:
    return float(optax.tree.norm(state.model.params, ord=1))


@pytest.mark.ci
@pytest.mark.parametrize(("section", "part"), BLOCKS)
def test_blocks_run_in_order(section, part, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # one of them writes a file
    assert namespace(section, part)


def test_forget_and_evaluate_example_prints_fractions_and_gaps(capsys):
    names = namespace("Without the command", "")
    scores = names["scores"]
    assert all(0 <= scores[name] <= 1 for name in ("ua", "ra", "ta", "mia_efficacy"))
    assert {"gap_retrain_ua", "mia_class", "ua_test"} <= scores.keys()
    assert float(sparse_mu.masks.sparsity(names["masks"], sparse_mu.matrices)) == pytest.approx(
        0.8, abs=1e-3
    )


def test_the_unpruned_mask_of_the_example_is_nearer_to_the_retrained_one():
    names = namespace("Without the command", "The mask remembers, too")
    kept, found = (
        sparse_mu.topology.iou(masks, names["target"], sparse_mu.matrices)
        for masks in (names["masks"], names["unpruned"].masks)
    )
    assert found > kept + 0.05


def test_every_bridge_is_in_the_readme():
    assert [part for section, part in BLOCKS if section == BRIDGE_SECTION and part] == [*BRIDGES]


@pytest.mark.parametrize("part", BRIDGES)
def test_step_block_has_at_most_fifteen_lines(part):
    last = BLOCKS[BRIDGE_SECTION, part][-1]
    assert len(last.splitlines()) <= LINES
    assert all(word in last for word in ("finetune.step", "l1.step", "magnitude_masks"))


@pytest.mark.ci
@each_bridge
def test_finetune_step_lowers_the_loss(bridge):
    batch = bridge["sets"].retain
    pruned = sparse_mu.masks.apply(bridge["masks"], bridge["model"].params)
    key = jax.random.key(1)
    before, _ = bridge["loss_fn"](pruned, bridge["model"].net_state, batch, key)
    after, _ = bridge["loss_fn"](*bridge["tuned"].model, batch, key)
    assert float(after) < float(before)


@each_bridge
def test_l1_step_shrinks_the_norm_more_than_finetuning(bridge):
    assert l1_norm(bridge["shrunk"]) < l1_norm(bridge["tuned"])


@each_bridge
def test_mask_has_the_exact_sparsity_and_pruned_weights_stay_zero(bridge, request):
    prunable = BRIDGES[request.node.callspec.params["bridge"]]
    flags = sparse_mu.masks.prunable_leaves(bridge["model"].params, prunable)
    kept, total = 0, 0
    for flag, mask in zip(jax.tree.leaves(flags), jax.tree.leaves(bridge["masks"]), strict=True):
        kept += int(mask.sum()) if flag else 0
        total += mask.size if flag else 0
        assert flag or bool(mask.all())
    assert total - kept == round(0.5 * total)
    state = bridge["shrunk"]
    for method in ("finetune", "l1"):  # a few more steps, with the state a reader would carry on
        step = jax.jit(bridge[method].step)
        for _ in range(3):
            state, stats = step(state, bridge["sets"])
        assert bool(stats.finite)
    for last in (bridge["tuned"], bridge["shrunk"], state):
        params, masks = jax.tree.leaves(last.model.params), jax.tree.leaves(bridge["masks"])
        assert all(
            (np.asarray(leaf)[~np.asarray(mask)] == 0).all()
            for leaf, mask in zip(params, masks, strict=True)
        )


@pytest.mark.parametrize("bridge", ["Flax linen", "Flax nnx"], indirect=True)
def test_batch_statistics_follow_training_and_rest_in_evaluation(bridge):
    model, inputs = bridge["model"], bridge["images"][:8]
    before = jax.tree.leaves(model.net_state)
    trained = jax.tree.leaves(bridge["tuned"].model.net_state)
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, trained, strict=True))
    _, rested = bridge["apply_fn"](*model, inputs, train=False, key=jax.random.key(0))
    assert jax.tree.structure(rested) == jax.tree.structure(model.net_state)
    for a, b in zip(before, jax.tree.leaves(rested), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bridge", ["Flax nnx"], indirect=True)
def test_nnx_needs_the_copy(bridge):
    from flax import nnx

    def shared(params, net_state, inputs, *, train, key):
        net = nnx.merge(bridge["graphdef"], params, net_state)
        net.train()
        return net(inputs), nnx.state(net, nnx.Not(nnx.Param))

    loss_fn = sparse_mu.classification(shared)
    with pytest.raises(Exception, match="different trace level"):
        jax.grad(loss_fn, has_aux=True)(*bridge["model"], bridge["sets"].retain, jax.random.key(0))


def test_both_commands_stand_in_the_readme():
    lines = console_lines(README)
    assert MAIN_COMMAND in lines
    assert TEST_COMMAND in lines
    assert MAIN_COMMAND == arguments.EXAMPLE
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1


def test_test_command_is_what_continuous_integration_runs():
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("there is no .ci/run in this tree")
    commands = [line.partition("#")[0] for line in script.read_text("utf-8").splitlines()]
    assert any(command.strip().endswith(TEST_COMMAND) for command in commands)


def test_relative_links_lead_somewhere():
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/sharp_edges.md"):
        page = ROOT / name
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], name


# ml_collections loads a config file by a method that Python will drop
loads_config = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def run_main(capsys, monkeypatch):
    """Runs the main command in this process; gives its exit code and its standard error."""

    def run(command: str):
        argv = shlex.split(command)
        assert argv[:3] == ["python", "-m", "sparse_mu.main"]
        monkeypatch.setattr(sys, "argv", argv[2:])
        return main.main(argv[2:]), capsys.readouterr().err

    return run


def bad_input_examples():
    section = README.partition("\n## Bad input\n")[2].partition("\n## ")[0]
    lines = console_lines(section)
    return list(zip(lines[::2], lines[1::2], strict=True))


@loads_config
@pytest.mark.parametrize(("command", "printed"), bad_input_examples())
def test_bad_input_prints_what_the_readme_says(run_main, monkeypatch, tmp_path, command, printed):
    monkeypatch.chdir(ROOT)
    code, error = run_main(command.removeprefix("$ ").replace("runs/x", str(tmp_path / "x")))
    assert (code, error) == (2, printed + "\n")


@loads_config
def test_cifar_command_is_a_valid_config(monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = [line for line in console_lines(README) if "cifar10" in line]
    argv = shlex.split(command)[2:]
    monkeypatch.setattr(sys, "argv", argv)
    flat = arguments.flat_config(arguments.parse(argv))
    assert flat["dataset.limit"] == 2000
    assert flat["unlearn.methods"] == ("finetune", "gradient_ascent")


def cifar_flags(command: str) -> set[str]:
    """What shrinks the run, without the reader's own folders."""
    flags = set(shlex.split(command)[3:])
    return {f for f in flags if not f.startswith(("--workdir=", "--config.dataset.data_dir="))}


def test_the_shrunk_cifar_command_is_one_command_in_its_three_places():
    (readme,) = [line for line in console_lines(README) if "cifar10" in line]
    shrunk = cifar10_resnet20s.__doc__.partition("Shrunk to")[2].partition("\n\n")[2]
    shrunk = shrunk.replace("\\\n", " ").strip()
    assert cifar_flags(readme) == cifar_flags(shrunk) == set(benchmark.SHRUNK)
