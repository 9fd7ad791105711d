"""What a compiled program takes of memory, what there is, and the error when that is too little.

XLA plans the buffers of a program when it compiles it, so its need is known before it runs. Its
arguments are on the device by then: what a call takes more is compared with what is free.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from sparse_mu.types import Execution, Program, PyTree

SHARE = 0.9  # of what is free; the rest is for what XLA does not plan: fragments, the host's work
WORDS = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")  # of XLA's own errors, and of CUDA's within them


class MemoryShort(Exception):
    """There is less memory than a program needs; one line that says how much."""


class Need(NamedTuple):
    """Bytes of a compiled program on each of its devices.

    Attributes:
        total: all of it, arguments included.
        more: what a call takes beside its arguments.
    """

    total: int
    more: int


class Chunk(NamedTuple):
    """How much work was on the devices at a time.

    Attributes:
        trials: in one dispatch, over all devices.
        rows: of a batch.
        bytes: of the largest program on each device, its arguments included; None where that is
            not known.
        halved: whether trials or rows were fewer than asked for, because memory was short: equal
            to what was asked for by rounding, not to the bit.
    """

    trials: int
    rows: int
    bytes: int | None
    halved: bool = False


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A compiled program; equal to another of the same executable, for the cache."""

    executable: object
    stages: jax.stages.Compiled = dataclasses.field(compare=False)


def needed(compiled: jax.stages.Compiled) -> Need | None:
    """What XLA planned for a program; None where the backend does not tell."""
    return _needed(_Compiled(compiled.runtime_executable(), compiled))


@functools.lru_cache(maxsize=256)  # it takes milliseconds, and every fit asks
def _needed(compiled: _Compiled) -> Need | None:
    planned = compiled.stages.memory_analysis()
    if planned is None:
        return None
    more = planned.temp_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes
    return Need(planned.argument_size_in_bytes + more, more)


def compile_ahead(program: Program, execution: Execution, *given: PyTree) -> int | None:
    """Compiles a program for placed arguments ahead of its first call, unless it will not fit.

    Args:
        program: what ``execution`` compiled.
        execution: says how much room there is on its devices.
        given: state, own and shared.

    Returns:
        The bytes it needs on each device, arguments included; None where that is not known.

    Raises:
        MemoryShort: if a call takes more than the share of the free memory that it may.
    """
    need = needed(program.lower(*given).compile())
    if need is None:
        return None
    free = execution.room()
    if free is not None and need.more > SHARE * free:
        raise MemoryShort(f"needs {human(need.more)} more, {human(free)} of memory are free")
    return need.total


def larger(first: int | None, second: int | None) -> int | None:
    """The larger of two numbers of bytes, of which either may not be known."""
    known = [size for size in (first, second) if size is not None]
    return max(known) if known else None


def room_on(devices: Sequence[jax.Device]) -> Callable[[], int | None]:
    """A function that tells how many bytes are free on each of some devices, now.

    CPU devices share the memory of the host evenly.
    """

    def room() -> int | None:
        if devices[0].platform == "cpu":
            free = free_on_host()
            return None if free is None else free // len(devices)
        stats = [device.memory_stats() or {} for device in devices]
        if not all({"bytes_limit", "bytes_in_use"} <= of_device.keys() for of_device in stats):
            return None
        return min(found["bytes_limit"] - found["bytes_in_use"] for found in stats)

    return room


def free_on_host(root: Path = Path("/")) -> int | None:
    """Bytes the host can give this process: of the machine, and of its control groups if less.

    Args:
        root: where ``proc`` and ``sys`` are mounted.

    Returns:
        None where the system does not tell (it is not Linux).
    """
    found = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines)
        found.append(1024 * int(table["MemAvailable"].split()[0]))
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                found += _free_in_groups(root, path, is_second=controllers == "")
    except (OSError, ValueError, KeyError):
        pass
    return min(found) if found else None


def _free_in_groups(root: Path, path: str, *, is_second: bool) -> Iterator[int]:
    """Bytes free in a control group and in those around it, where they have a limit.

    Cached files that nobody uses count as used there, but give way.
    """
    base = root / ("sys/fs/cgroup" if is_second else "sys/fs/cgroup/memory")
    names = ("memory.max", "memory.current", "inactive_file")
    if not is_second:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for folder in (base / path.lstrip("/"), *(base / path.lstrip("/")).parents):
        if not folder.is_relative_to(base):
            break
        try:
            limit, used = ((folder / name).read_text().strip() for name in names[:2])
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the root has none; a container sees its own folder as root
            continue
        if limit != "max":
            yield max(int(limit) - int(used) + int(stat.get(names[2], 0)), 0)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the host's."""
    if isinstance(error, MemoryError):
        return True
    is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    return is_of_jax and any(word in str(error) for word in WORDS)


def reason(error: BaseException) -> str:
    """The first sentence of an error about memory: XLA's go on for pages."""
    return next(iter(str(error).splitlines()), "").partition(". ")[0].strip(" .") or "no memory"


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turns running out of memory into an error of one line.

    Args:
        what: what needs the memory, and which key makes it less.

    Raises:
        MemoryShort: in place of an error that :func:`is_exhausted`.
    """
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        raise MemoryShort(f"memory ran out ({reason(error)}): {what}") from error


def human(count: int) -> str:
    """Bytes in the largest unit that leaves at least one: ``1.5 GiB``."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
