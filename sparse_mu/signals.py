"""SIGINT and SIGTERM while the command runs: the first asks, the second ends it at once."""

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from sparse_mu.stopping import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"stopping after this step; once more to stop at once\n"


class Signals:
    """What a first signal does at the moment.

    Attributes:
        stop: told of it.
        patient: whether that is all, as while the pipeline runs, which looks at ``stop`` between
            its steps; else it interrupts, too.
    """

    def __init__(self) -> None:
        """Impatient."""
        self.stop, self.patient, self._interrupted = StopRequest(), False, False

    def exit_code(self) -> int:
        """Of a command that was interrupted: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.stop.signal or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Python's handler: runs in the main thread, once that is back from compiled code."""
        del frame
        if self._interrupted:
            os._exit(128 + number)  # as `watch` would in a moment
        self._interrupted = True
        # also where it interrupts: Python may run this inside a callback of the garbage collector
        # (jax has one), which swallows what is raised; then the pipeline's first look stops it
        self.stop.ask(number)
        if not self.patient:
            raise KeyboardInterrupt

    def watch(self, descriptor: int) -> None:
        """Reads the number of every signal as it arrives, while the main thread compiles, too.

        Ends at a 0, which is no signal's (a process forked meanwhile keeps the pipe open).
        """
        asked = False
        while number := os.read(descriptor, 1)[0]:
            if number not in SIGNALS:
                continue
            if asked:
                os._exit(128 + number)  # nothing is flushed: as resumable as after a kill
            asked = True
            if self.patient:
                self.stop.ask(number)
                with contextlib.suppress(OSError):
                    # on a terminal below the progress bar, which has not ended its line
                    os.write(2, b"\n" * os.isatty(2) + _SAID)


def resuming(argv: Sequence[str]) -> str:
    """The command that continues a run, as a shell takes it."""
    return shlex.join(["python", "-m", "sparse_mu.main", *argv[1:]])


@contextlib.contextmanager
def handled() -> Iterator[Signals]:
    """Handles the signals of the process until it is left; then everything is as before.

    Outside of the main thread nothing can be handled, and nothing is.

    Raises:
        KeyboardInterrupt: in its body, at the first signal, unless that is patient.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = threading.Thread(target=signals.watch, args=(read,), daemon=True)
    watcher.start()
    earlier_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    earlier = {number: signal.signal(number, signals.handle) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not installed by Python
        signal.set_wakeup_fd(earlier_wakeup)
        os.write(write, b"\0")
        watcher.join()
        os.close(write)
        os.close(read)
