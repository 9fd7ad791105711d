from html.parser import HTMLParser

import pytest
from synthetic_rows import make_config, make_rows

from sparse_mu import report
from sparse_mu.reading import reading
from sparse_mu.report import write_report
from sparse_mu.summary import summarise

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Balanced(HTMLParser):
    """Raises where a tag is closed that is not the last one opened; keeps ids and tags."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rows = make_rows()
    config = make_config()
    config["dataset"]["name"] = "<script>alert(1)</script>"
    config["note"] = "<script>alert(2)</script>"
    summary = summarise(rows, config=config, manifest={"jax": "<b>0.10.2</b>"})
    folder = tmp_path_factory.mktemp("report")
    write_report(summary, rows, folder / "report.html")
    write_report(summary, rows, folder / "again.html")
    return folder


def test_the_report_is_balanced_html_with_unique_ids(written):
    parser = Balanced()
    parser.feed((written / "report.html").read_text(encoding="utf-8"))
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    # those of a Trojan, of a target and of un-pruned masks are drawn where there is one
    assert parser.tags.count("figure") == len(report.PANELS) - 3


def test_the_report_needs_nothing_from_outside(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    for outside in ("http://", "https://", "<script", "<link", "<img", "@import", "url(//"):
        assert outside not in text


def test_everything_shown_is_escaped(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;script&gt;alert(2)" in text
    assert "&lt;b&gt;0.10.2" in text


def test_the_same_summary_gives_the_same_bytes_and_no_file_is_left_over(written):
    assert (written / "report.html").read_bytes() == (written / "again.html").read_bytes()
    assert sorted(path.name for path in written.iterdir()) == ["again.html", "report.html"]


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", refuse)
    rows = make_rows(trials=2, sparsities=(0.0,))
    with pytest.raises(OSError, match="disk full"):
        write_report(summarise(rows, config=make_config(), manifest={}), rows, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sparsities", [(0.0,), (0.0, 0.5, 0.9)])
def test_other_shapes_of_a_run_are_drawn_too(tmp_path, sparsities):
    rows = make_rows(scenario="class", trials=3, classes=3, sparsities=sparsities)
    rows += [{**row, "method": "mine & <own>"} for row in rows if row["method"] == "finetune"]
    write_report(
        summarise(rows, config=make_config("class"), manifest={}), rows, tmp_path / "report.html"
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mine &amp; &lt;own&gt;" in text
    assert "n = 3 classes" in text
    assert "<th>forgotten</th>" in text


def test_the_reading_is_two_sentences_that_hold_in_the_summary():
    summary = summarise(make_rows(), config=make_config(), manifest={})
    text = reading(summary)
    assert text.count(". ") == 1
    assert "On the dense model no method is within the noise floor" in text
    assert "At 95% sparsity l1_sparse is within the noise floor" in text
    smaller = sum(
        summary["disparity"][method]["0.95"]["retrain_dense"]["value"]
        < summary["disparity"][method]["0"]["retrain"]["value"]
        for method in ("finetune", "gradient_ascent", "fisher", "influence", "l1_sparse")
    )
    assert f"for {smaller} of 5 when both are held against retrain_dense" in text


def test_the_reading_of_one_trial_claims_nothing_about_the_floor():
    rows = make_rows(trials=1, sparsities=(0.0,))
    assert "is not known" in reading(summarise(rows, config=make_config(), manifest={}))
