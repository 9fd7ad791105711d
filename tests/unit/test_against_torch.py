"""The benchmark against torch on two images: both sides agree, and every figure is printed."""

import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'sparse_mu[torch]'")


def printed_by(monkeypatch, capsys, *arguments):
    from experiments import against_torch

    command = ["against_torch", *arguments, "--examples", "2", "--pairs", "1", "--chunks", "1"]
    monkeypatch.setattr(sys, "argv", command)
    against_torch.main()
    return capsys.readouterr().out


@pytest.mark.slow  # compiles ResNet-20s
def test_fisher_agrees_and_is_timed(monkeypatch, capsys):
    out = printed_by(monkeypatch, capsys, "fisher")
    assert "agreement: Fisher diagonals" in out and "ratio of medians" in out


@pytest.mark.slow  # compiles ResNet-20s
def test_influence_agrees_and_prints_its_split(monkeypatch, capsys):
    out = printed_by(monkeypatch, capsys, "influence")
    assert "agreement: moves of the official recursion" in out
    assert all(part in out for part in ("gradients ", "Gram ", "solve ", "residual "))


def test_a_disagreement_stops_the_command(capsys):
    from experiments.against_torch import must_agree

    must_agree("things", 1e-6, 1e-5)
    for wrong in (2e-5, float("nan")):
        with pytest.raises(SystemExit, match="nothing timed"):
            must_agree("things", wrong, 1e-5)
