"""Damage to the bytes of a valid file: where headers stand more often than elsewhere."""

from hypothesis import strategies as st

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def places(size):
    """Offsets of a file of ``size`` bytes, its first and its last 256 as often as all of it."""
    last = max(size - 1, 0)
    return st.one_of(
        st.integers(0, min(last, 256)), st.integers(max(last - 256, 0), last), st.integers(0, last)
    )


@st.composite
def damaged(draw, content, most=3):
    """``content`` with one to ``most`` of: bits flipped, bytes cut, doubled, put in, numbers."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        at = draw(places(len(data)))
        match draw(st.sampled_from(("flip", "byte", "cut", "remove", "put", "number", "double"))):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "remove":
                del data[at : at + draw(st.integers(1, 64))]
            case "put":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "number":
                width = draw(st.sampled_from((1, 2, 4, 8)))
                number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * width)
                data[at : at + width] = number.to_bytes(
                    width, draw(st.sampled_from(("little", "big")))
                )
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)
