"""How a run is asked to stop, and how it says that it has."""


class Stopped(Exception):
    """The run was asked to stop, and what it had done is on disk."""


class StopRequest:
    """Whether the run was asked to stop; a signal handler sets it, loops look at it.

    Attributes:
        signal: the number of the signal that asked; None as long as none has.
    """

    def __init__(self) -> None:
        """Nobody has asked."""
        self.signal: int | None = None

    def ask(self, signal: int) -> None:
        """Asks; the first signal stays the reason."""
        if self.signal is None:
            self.signal = signal

    def asked(self) -> bool:
        """Whether anybody has asked."""
        return self.signal is not None
