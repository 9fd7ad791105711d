"""What cannot be read or written."""


class StateDictError(ValueError):
    """A state dict or its file that cannot be taken; one line that names the tensor or global."""

    def __init__(self, line: str) -> None:
        """Keeps ``line`` one line, whatever names of a damaged file stand in it."""
        super().__init__(" ".join(line.split()))
