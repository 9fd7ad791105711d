"""Headers of numpy's files, read before anything of the size that they claim is allocated."""

import warnings
from typing import IO

import numpy as np

LARGEST_HEADER = 2**16  # bytes of text before an array


def header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array whose content follows in ``stream``.

    Raises:
        ValueError: it is of a version that no plain array needs, or of a type without a size, whose
            entries would be told by nothing in the file. From a damaged header numpy, ast and
            tokenize raise many other kinds.
    """
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of numpy's format; 1.0 or 2.0 is needed")
    with warnings.catch_warnings():  # of Python 2's numbers, and of escapes in a damaged header
        warnings.simplefilter("ignore")
        shape, _, dtype = readers[version](stream, max_header_size=LARGEST_HEADER)
    if not dtype.itemsize:
        raise ValueError(f"entries of type {dtype.str} have no size")
    return shape, dtype


def size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array; a Python number, which does not overflow."""
    return dtype.itemsize * int(np.prod(shape, dtype=object))
