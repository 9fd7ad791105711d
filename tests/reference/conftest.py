"""Which files of recorded numbers are compared, and the table of what the comparisons found.

``pytest tests/reference --vectors=FILE`` takes any file of one of the two formats (several options
take several files). Without it the files are those of ``$SPARSE_MU_SHARED/reference``, or of
``shared/reference`` beside the repository; without those either, every test skips.
"""

import os
import zipfile
from pathlib import Path

import jax
import pytest
import vectors

PROPERTY, MISTAKE = "reference_row", "reference_mistake"
SMALL_NETWORK = "resnet20s"  # the others compile for 10 to 40 s each
_BESIDE = Path(__file__).parents[3] / "shared"


def pytest_addoption(parser):
    parser.addoption(
        "--vectors",
        action="append",
        metavar="FILE",
        help="a file of recorded official behaviour to compare with; may be given several times",
    )


def _files(config):
    given = config.getoption("--vectors", default=None)
    if given:
        return [Path(name) for name in given]
    folder = Path(os.environ.get("SPARSE_MU_SHARED") or _BESIDE) / "reference"
    return sorted(folder.glob("*.npz"))


def pytest_configure(config):
    """Refuses a file that is none, in one line."""
    for path in config.getoption("--vectors", default=None) or ():
        try:
            vectors.kind_of(Path(path))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0]
            raise pytest.UsageError(f"--vectors={path}: {reason}") from error


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Gives ``recorded`` each file of the module's ``KIND``, and ``network`` its networks."""
    if "recorded" not in metafunc.fixturenames:
        return
    names = ["recorded", "network"] if "network" in metafunc.fixturenames else ["recorded"]
    kind = metafunc.module.KIND
    found = [path for path in _files(metafunc.config) if vectors.kind_of(path) == kind]
    if len(names) == 2:
        found = [(path, name) for path in found for name in vectors.networks_of(path)]
    else:
        found = [(path,) for path in found]
    if not found:
        reason = f"no file of {kind}: pass --vectors=FILE or set SPARSE_MU_SHARED"
        found = [pytest.param(*[None] * len(names), marks=pytest.mark.skip(reason=reason))]
    metafunc.parametrize(names, found, ids=lambda value: getattr(value, "stem", value))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks lengthy comparisons slow, unless somebody asks for a file of their own."""
    if not config.getoption("--vectors", default=None):
        for item in items:
            lengthy = getattr(getattr(item, "function", None), "lengthy", False)
            network = getattr(item, "callspec", None) and item.callspec.params.get("network")
            if lengthy or network not in (None, SMALL_NETWORK):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package", autouse=True)
def optimised():
    """What is compared is what runs: fully optimised programs."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def record(request):
    """Takes rows into the table at the end of the run and fails on those beyond their limit."""

    def take(rows):
        for row in rows:
            request.node.user_properties.append((PROPERTY, [str(row.key), *map(float, row[1:])]))
        beyond = [f"{row.key}: {row.error:.3g} > {row.limit:.3g}" for row in rows if not row.passed]
        assert not beyond, "; ".join(beyond)

    return take


def _recorded(terminalreporter, wanted):
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if getattr(report, "when", None) == "call":
                yield from (value for name, value in report.user_properties if name == wanted)


def pytest_terminal_summary(terminalreporter):
    rows = list(_recorded(terminalreporter, PROPERTY))
    if rows:
        width = max(len(key) for key, *_ in rows)
        terminalreporter.section("recorded official behaviour")
        terminalreporter.line(f"{'key':{width}}  {'our error':>10}  {'limit':>8}")
    for key, error, limit in rows:
        verdict = "" if error <= limit else "  FAILED"
        terminalreporter.line(f"{key:{width}}  {error:10.3g}  {limit:8.3g}{verdict}")
    mistakes = list(_recorded(terminalreporter, MISTAKE))
    if mistakes:
        terminalreporter.section("mistakes made on purpose, and the limits they break")
    last = None
    for test, key, error, limit in mistakes:
        if test != last:
            terminalreporter.line(test)
            last = test
        terminalreporter.line(f"  {key:<44}  {error:10.3g}  {limit:8.3g}")
