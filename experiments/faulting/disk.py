"""Disks that are full, too small, read-only or emptied: one line, and the same command goes on.

- *too small*: a tmpfs of a few MiB in a mount namespace of its own (``unshare``), made larger
  afterwards; every write behaves as on a full disk (ENOSPC): at the first stage, in the middle, and
  when all stages are there and the rows are not.
- *read-only*: a started run on such a tmpfs, mounted read-only and writable again afterwards; this
  holds for root, too, whom permissions do not stop.
- *files cut*: a limit on the size of files (RLIMIT_FSIZE; a Python process ignores its signal, so
  that the write fails) far below what a stage needs.
- *deleted*: ``stages/`` is deleted under the run, once and for all, or the whole workdir is.

After each the same command must end well on what is left, with the bits of the reference.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.faulting import comparing, observing
from experiments.faulting.command import Bench, Ended, one_line
from experiments.faulting.kills import Reference

PAGE = os.sysconf("SC_PAGE_SIZE")
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
# arguments: folder to mount on, its first mount option, the option of the second run, folder to
# copy the result to, folder that the workdir begins as, and the command
SCRIPT = """
disk=$1 first=$2 second=$3 out=$4 begun=$5; shift 5
mount -t tmpfs -o size=1g none "$disk" || exit 90
cp -r "$begun"/. "$disk" && mount -o "remount,$first" "$disk" || exit 91
"$@" >"$out/first.out" 2>"$out/first.err"; echo $? >"$out/first.code"
mount -o "remount,$second" "$disk" || exit 92
"$@" >"$out/second.out" 2>"$out/second.err"; echo $? >"$out/second.code"
cp -r "$disk"/. "$out/left"
"""
# arguments: bytes, and the command
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Disk(NamedTuple):
    """What each trouble made the command say.

    Attributes:
        said: the code and the line of the troubled run, by what the trouble was.
        left_out: what could not be tried here, and why.
        problems: what should not have been.
    """

    said: dict[str, str]
    left_out: list[str]
    problems: list[str]


def can_mount() -> bool:
    """Whether a private tmpfs can be made here."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    probe = [*NAMESPACE, "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def on_tmpfs(bench: Bench, name: str, begun: Path, first: str, second: str) -> tuple[Ended, Path]:
    """Runs twice on a tmpfs that is troubled the first time.

    Args:
        bench: where.
        name: of a folder for what comes of it.
        begun: the workdir's content at the start.
        first: mount option of the first run.
        second: of the second.

    Returns:
        How the first run ended, and the workdir after the second.

    Raises:
        RuntimeError: if the second did not end well.
    """
    out, disk = bench.folder / name, bench.folder / f"{name}-disk"
    out.mkdir()
    disk.mkdir()
    places = [str(disk), first, second, str(out), str(begun)]
    process = bench.start([*NAMESPACE, "sh", "-c", SCRIPT, "sh", *places, *bench.command(disk)])
    _, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{name}: the script ended with {process.returncode}: {err}")
    ended = []
    for turn in ("first", "second"):
        texts = [(out / f"{turn}.{part}").read_text() for part in ("code", "out", "err")]
        ended.append(Ended(int(texts[0]), texts[1], texts[2], 0.0))
    if ended[1].code:
        raise RuntimeError(f"{name}: the second run ended with {ended[1].code}: {ended[1].err}")
    return ended[0], out / "left"


def in_pages(folder: Path) -> int:
    """Bytes of the pages that the files below a folder fill on a tmpfs."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def limited(bench: Bench, workdir: Path, largest: int) -> Ended:
    """Runs with a limit on the size of every file, in bytes."""
    began = time.perf_counter()
    process = bench.start([sys.executable, "-c", LIMITED, str(largest), *bench.command(workdir)])
    out, err = process.communicate()
    return Ended(process.returncode, out, err, time.perf_counter() - began)


def disturbed(
    bench: Bench, workdir: Path, same: Reference, act: str, disturb: Callable[[], None]
) -> Ended:
    """Starts a run, disturbs it once in an act, and waits for its end."""
    began = time.time()
    process = bench.start_run(workdir)
    while process.poll() is None:
        if observing.act_at(workdir, process.pid, began, same.known) == act:
            disturb()
            break
        time.sleep(0.005)
    out, err = process.communicate()
    return Ended(process.returncode, out, err, time.time() - began)


def killed_in(bench: Bench, workdir: Path, same: Reference, act: str) -> None:
    """Leaves a workdir whose run was killed in an act."""
    began = time.time()
    process = bench.start_run(workdir)
    while process.poll() is None:
        if observing.act_at(workdir, process.pid, began, same.known) == act:
            break
        time.sleep(0.005)
    process.kill()
    process.communicate()


def disk(bench: Bench, same: Reference) -> Disk:
    """Every trouble once."""
    said, problems = {}, []

    def judge(what: str, ended: Ended, workdir: Path, *, may_end_well: bool = False) -> None:
        """The troubled run said one line; after the trouble the same command ends well."""
        lines = [line for line in ended.err.splitlines() if line]
        said[what] = f"{ended.code}: " + (lines[-1] if lines else "")
        said[what] = said[what].replace(str(bench.folder), "DIR")
        if ended.code != 1 and not (may_end_well and ended.code == 0):
            problems.append(f"{what}: ended with {ended.code}: {ended.err}")
        if ended.code == 1 and not one_line(ended.err):
            problems.append(f"{what}: said more than a line: {ended.err}")
        found = comparing.differences(same.kept, comparing.read(workdir))
        problems.extend([f"{what}: afterwards {comparing.in_words(found)}"] if found else [])

    def continued(what: str, ended: Ended, workdir: Path, *, may_end_well: bool = False) -> None:
        again = bench.run(workdir)
        if again.code:
            problems.append(f"{what}: the next run ended with {again.code}: {again.err}")
        else:
            judge(what, ended, workdir, may_end_well=may_end_well)

    left_out = []
    begun = bench.folder / "begun"
    killed_in(bench, begun, same, "unlearn")
    nothing = bench.folder / "nothing"
    nothing.mkdir()
    unjudged = bench.folder / "unjudged"
    shutil.copytree(same.workdir, unjudged)
    for name in ("results.jsonl", "summary.json", "report.html", "manifest.json"):
        (unjudged / name).unlink()
    if can_mount():
        need = observing.files_below(same.workdir)[1]
        roomy = "size=1g,rw"
        for what, start, first in (
            ("a full disk at the first stage", nothing, "size=64k"),
            ("a full disk in the middle", nothing, f"size={need // 2}"),
            ("a full disk at the rows", unjudged, f"size={in_pages(unjudged) + 2 * PAGE}"),
            ("a read-only disk, new run", nothing, "ro"),
            ("a read-only disk, continued run", begun, "ro"),
        ):
            name = what.replace(" ", "-").replace(",", "")
            try:
                judge(what, *on_tmpfs(bench, name, start, first, roomy))
            except RuntimeError as error:
                problems.append(str(error))
    else:
        left_out.append("a full and a read-only disk: no tmpfs can be mounted here")
    workdir = bench.folder / "limited"
    continued("files of at most 8 KiB", limited(bench, workdir, 8192), workdir)
    for what, act, inside in (
        ("stages/ deleted while training", "train", "stages"),
        ("stages/ deleted while unlearning", "unlearn", "stages"),
        ("stages/ deleted while evaluating", "evaluate", "stages"),
        ("the workdir deleted while unlearning", "unlearn", ""),
    ):
        workdir = bench.folder / what.replace(" ", "-").replace("/", "")

        def delete(path: Path = workdir / inside) -> None:
            shutil.rmtree(path, ignore_errors=True)

        ended = disturbed(bench, workdir, same, act, delete)
        continued(what, ended, workdir, may_end_well=True)
    if os.geteuid() == 0:
        left_out.append("permissions: this ran as root, whom they do not stop")
    return Disk(said, left_out, problems)
