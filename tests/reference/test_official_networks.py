"""Every network we ship against the official one's logits, weights drawn by the file's rule."""

import comparisons
import jax
import pytest
import vectors

KIND = vectors.NETWORKS


def test_logits(recorded, network, record):
    if network not in vectors.BUILT:
        pytest.skip(f"{network}: network not built yet")
    with jax.default_matmul_precision("float32"):
        record(comparisons.network_rows(recorded, network))
