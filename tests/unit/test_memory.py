"""What programs need of memory, what there is, and what happens where that is too little."""

import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_mu import memory
from sparse_mu.execution import mapped, over_trials, sharded, single
from sparse_mu.memory import MemoryShort
from sparse_mu.retry import Portion, half, within_memory

SIDE = 64
STATE = 4 * SIDE * SIDE  # bytes of one trial's matrix
SLACK = 1024  # bytes: the steps' counters, padding


def looping(state, own, shared):
    return jax.lax.fori_loop(0, shared, lambda i, s: jnp.tanh(s @ s.T @ s) + own.sum(), state)


def program_of(execution, *, donate):
    state = execution.put_state(np.ones((execution.group, SIDE, SIDE), np.float32))
    own = execution.put_state(np.ones((execution.group, 8), np.float32))
    return execution.compile(looping, donate=donate), (state, own, np.int32(3))


# ---- what programs need ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("execution", "each"),
    [
        (single(), 1),
        (over_trials(jax.devices()[:2]), 1),
        (over_trials(jax.devices()[:2], per_device=3), 3),
        (sharded(jax.devices()[:2]), 1),
        (mapped(jax.devices()[:2]), 1),
    ],
)
def test_the_need_of_a_program_counts_its_matrices_on_each_device(execution, each):
    needs = []
    for donate in (False, True):
        program, given = program_of(execution, donate=donate)
        needs.append(memory.needed(program.lower(*given).compile()))
    kept, donated = needs
    assert kept.total - kept.more == pytest.approx(each * STATE, abs=SLACK)  # the state
    # the state, a result that takes its own place unless it may take the state's, two products
    assert kept.total - donated.total == pytest.approx(each * STATE, abs=SLACK)
    assert 2 * each * STATE - SLACK <= kept.more <= 4 * each * STATE + SLACK


def test_a_backend_that_does_not_plan_has_no_known_need():
    silent = SimpleNamespace(memory_analysis=lambda: None, runtime_executable=object)
    assert memory.needed(silent) is None


def test_a_program_that_fits_is_compiled_ahead_and_traced_once():
    traced = []

    def counted(state, own, shared):
        traced.append(1)
        return looping(state, own, shared)

    execution = over_trials(jax.devices()[:1], room=lambda: 2**40)
    _, given = program_of(execution, donate=False)
    program = execution.compile(counted, donate=False)
    need = memory.needed(program.lower(*given).compile())
    assert memory.compile_ahead(program, execution, *given) == need.total > 0
    program(*given)
    assert len(traced) == 1


@pytest.mark.parametrize(("share", "fits"), [(1.001, True), (0.999, False)])
def test_a_program_may_take_nine_tenths_of_what_is_free(share, fits):
    program, given = program_of(single(), donate=False)
    more = memory.needed(program.lower(*given).compile()).more
    execution = over_trials(jax.devices()[:1], room=lambda: int(more / 0.9 * share))
    if fits:
        assert memory.compile_ahead(program, execution, *given) > more
        return
    with pytest.raises(MemoryShort, match=r"^needs .* KiB more, .* KiB of memory are free$"):
        memory.compile_ahead(program, execution, *given)


def test_where_the_room_is_not_known_every_program_is_tried():
    program, given = program_of(single(), donate=False)
    assert single().room() is None  # the library's own calls are never refused
    assert memory.compile_ahead(program, single(), *given) > 0


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**55, "32768.0 TiB"),
    ],
)
def test_bytes_in_words(count, said):
    assert memory.human(count) == said


def test_the_larger_need_of_which_either_may_be_unknown():
    assert memory.larger(None, None) is None
    assert memory.larger(None, 3) == memory.larger(3, None) == memory.larger(2, 3) == 3


# ---- what there is ---------------------------------------------------------------------------

MEMINFO = "MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:  2000 kB\n"


def host(root, cgroup, **groups):
    """A made-up ``/proc`` and ``/sys``; groups by their folder: (limit, used, inactive) bytes."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "proc/self/cgroup").write_text(cgroup)
    is_second = cgroup.startswith("0::")
    base = root / ("sys/fs/cgroup" if is_second else "sys/fs/cgroup/memory")
    for folder, (limit, used, inactive) in groups.items():
        at = base / folder.replace("_", "/")
        at.mkdir(parents=True, exist_ok=True)
        names = ("memory.max", "memory.current") if is_second else (
            *("memory.limit_in_bytes", "memory.usage_in_bytes"),
        )  # fmt: skip
        for name, value in zip(names, (limit, used), strict=True):
            (at / name).write_text(f"{value}\n")
        prefix = "" if is_second else "total_"
        (at / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {inactive}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "groups", "free"),
    [
        ("0::/a/b\n", {}, 2000 * 1024),
        ("0::/a/b\n", {"a_b": ("max", 10, 0)}, 2000 * 1024),
        ("0::/a/b\n", {"a_b": (9000, 4000, 1000)}, 6000),  # cached files give way
        ("0::/a/b\n", {"a_b": (9000, 4000, 0), "a": (8000, 5000, 500)}, 3500),  # the one around it
        ("0::/a/b\n", {"a_b": (9000, 9500, 0)}, 0),
        ("0::/../x\n", {}, 2000 * 1024),  # as seen from a namespace beside it
        ("4:cpu:/c\n3:memory:/a\n", {"a": (9000, 4000, 1000)}, 6000),
        ("not a line", {}, 2000 * 1024),
    ],
)
def test_the_memory_of_a_host_is_the_least_of_the_machines_and_its_groups(
    tmp_path, cgroup, groups, free
):
    assert memory.free_on_host(host(tmp_path, cgroup, **groups)) == free


def test_a_system_without_those_files_tells_nothing(tmp_path):
    assert memory.free_on_host(tmp_path) is None


def test_this_machine_has_some_memory_free():
    assert memory.free_on_host() > 2**20
    one, two = (memory.room_on(jax.devices()[:count])() for count in (1, 2))
    # the devices of a CPU share its memory; other processes take and give some meanwhile
    assert one / two == pytest.approx(2, rel=0.3)


def test_the_room_of_accelerators_is_the_least_of_theirs():
    def device(**stats):
        return SimpleNamespace(platform="gpu", memory_stats=lambda: stats or None)

    first, second = device(bytes_limit=100, bytes_in_use=30), device(bytes_limit=80, bytes_in_use=5)
    assert memory.room_on([first, second])() == 70
    assert memory.room_on([first, device()])() is None
    assert memory.room_on([device(bytes_in_use=3)])() is None


# ---- when it runs out ------------------------------------------------------------------------


def exhausted(text="RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes. And more."):
    return jax.errors.JaxRuntimeError(text)


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(jax.errors.JaxRuntimeError) as found:
        jnp.zeros(2**48, jnp.float32)  # no machine has that much: a real one
    assert memory.is_exhausted(found.value)
    assert memory.is_exhausted(MemoryError()) and memory.is_exhausted(exhausted())
    assert memory.is_exhausted(exhausted("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"))
    assert not memory.is_exhausted(exhausted("INTERNAL: something else"))
    assert not memory.is_exhausted(ValueError("RESOURCE_EXHAUSTED"))


def test_running_out_becomes_an_error_of_one_line():
    line = "memory ran out (RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes): lower it"
    with pytest.raises(MemoryShort) as found, memory.told("lower it"):
        raise exhausted()
    assert str(found.value) == line
    with pytest.raises(MemoryShort, match=r"^memory ran out \(no memory\): lower it$"):
        with memory.told("lower it"):
            raise MemoryError
    with pytest.raises(KeyError), memory.told("lower it"):
        raise KeyError("other errors pass")


def test_halves_take_fewer_trials_first_and_then_fewer_rows():
    portion, seen = Portion(over_trials(jax.devices()[:2], per_device=5), 5), []
    while portion is not None:
        seen.append((portion.execution.group, portion.rows))
        portion = half(portion)
    assert seen == [(10, 5), (6, 5), (4, 5), (2, 5), (2, 3), (2, 2), (2, 1)]
    assert half(Portion(single(), None)) is None


def test_a_half_is_the_same_execution_every_time_so_that_its_programs_are_found_again():
    whole = over_trials(jax.devices()[:1], per_device=4, room=lambda: 5)
    assert whole.fewer() is whole.fewer()
    assert whole.fewer().room() == 5 and whole.fewer().fewer().fewer is None


ASKED = Portion(over_trials(jax.devices()[:1], per_device=8), 4)


def attempts(*outcomes):
    """An attempt that raises or returns these one after another, and the portions it was given."""
    waiting, given = list(outcomes), []

    def attempt(portion):
        given.append((portion.execution.group, portion.rows))
        outcome = waiting.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return attempt, given


def test_enough_memory_changes_nothing():
    attempt, given = attempts("done")
    assert within_memory(attempt, ASKED, what="it", lower="key") == ("done", ASKED)
    assert given == [(8, 4)]


def test_by_rule_a_portion_is_halved_as_often_as_needed(caplog):
    attempt, given = attempts(*[MemoryShort("needs 2 B more")] * 4, "done")
    result, portion = within_memory(attempt, ASKED, what="fisher, dense", lower="key")
    assert result == "done" and (portion.execution.group, portion.rows) == given[-1] == (1, 2)
    assert given == [(8, 4), (4, 4), (2, 4), (1, 4), (1, 2)]
    assert caplog.messages[-1] == (
        "fisher, dense: needs 2 B more, with 1 trial and 4 rows at a time; "
        "goes on with 1 trial and 2 rows at a time, equal up to rounding"
    )


def test_memory_that_runs_out_is_tried_once_more_with_half(caplog):
    attempt, given = attempts(exhausted(), "done")
    result, portion = within_memory(attempt, ASKED, what="it", lower="key")
    assert result == "done" and given == [(8, 4), (4, 4)] and portion != ASKED
    assert len(caplog.messages) == 1 and "memory ran out" in caplog.messages[0]


def test_memory_that_runs_out_twice_is_an_error_that_names_the_key():
    attempt, given = attempts(exhausted(), MemoryShort("needs 2 B more"), exhausted(), "never")
    with pytest.raises(MemoryShort) as found:
        within_memory(attempt, ASKED, what="fisher, dense", lower="unlearn.fisher.batch_size")
    assert str(found.value) == (
        "fisher, dense: memory ran out (RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes), "
        "with 2 trials and 4 rows at a time; lower config.unlearn.fisher.batch_size, or take a "
        "smaller network"
    )
    assert given == [(8, 4), (4, 4), (2, 4)]  # a half by rule between is no retry


@pytest.mark.parametrize("error", [exhausted(), MemoryShort("needs 2 B more")])
def test_what_cannot_be_halved_is_an_error_at_once(error):
    attempt, given = attempts(error, "never")
    with pytest.raises(MemoryShort, match=r"^it: .*, with 1 trial at a time; lower config\.key, "):
        within_memory(attempt, Portion(single(), None), what="it", lower="key")
    assert given == [(1, None)]


def test_other_errors_pass():
    attempt, given = attempts(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        within_memory(attempt, ASKED, what="it", lower="key")
    assert len(given) == 1


def test_the_arrays_of_a_failed_attempt_are_gone_before_the_next():
    held = []

    def attempt(portion):
        assert all(array() is None for array in held)
        array = np.ones(10)
        held.append(weakref.ref(array))
        if len(held) == 1:
            raise exhausted()
        return "done"

    assert within_memory(attempt, ASKED, what="it", lower="key")[0] == "done"
