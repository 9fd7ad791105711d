"""Many starts of one command on one workdir at once: one runs, the others refuse."""

import shutil
from typing import NamedTuple

from experiments.faulting import comparing
from experiments.faulting.command import Bench, one_line
from experiments.faulting.kills import Reference


class Starts(NamedTuple):
    """How the processes ended.

    Attributes:
        ran: exit code 0.
        refused: exit code 1 and one line that names the holder.
        line: what one of those that refused printed.
        problems: what should not have been.
    """

    ran: int
    refused: int
    line: str
    problems: list[str]


def starts(bench: Bench, same: Reference, *, count: int) -> Starts:
    """Starts ``count`` processes at once and compares what the one that ran left."""
    workdir = bench.folder / "crowded"
    processes = [bench.start_run(workdir) for _ in range(count)]
    ended = [(*process.communicate(), process.returncode) for process in processes]
    ran = sum(code == 0 for _, _, code in ended)
    lines = [err for out, err, code in ended if code == 1 and not out and one_line(err)]
    refused = [line for line in lines if "held by" in line]
    problems = [err for _, err, code in ended if code and err not in refused]
    if (ran, len(refused)) != (1, count - 1):
        problems.append(f"{ran} ran and {len(refused)} refused, of {count}")
    if ran:
        found = comparing.differences(same.kept, comparing.read(workdir))
        problems += [f"the one that ran: {comparing.in_words(found)}"] if found else []
    shutil.rmtree(workdir)
    line = refused[0].strip().replace(str(bench.folder), "DIR") if refused else ""
    return Starts(ran, len(refused), line, problems)
