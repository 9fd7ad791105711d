"""Generated overrides, flags and config files, most of them wrong."""

import os

from bad_bytes import damaged
from fuzzing import DIGITS, PIPE, ROOT, Case, Link
from hypothesis import strategies as st

from sparse_mu import rules

VALID = Case(
    (f"--config={DIGITS}", "--config.trials=2", "--config.dataset.limit=200"),
)


def _can_be_given(text):
    """Whether a process can be given it: as a shell passes bytes on, without the zero that ends."""
    try:
        return "\0" not in text and os.fsdecode(os.fsencode(text)) == text
    except UnicodeEncodeError:
        return False


TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ("\x1b[31m", "\r\n", "\udcff", "\u202e", "\u2028", "naïve", "日本", "a" * 5000)
    ),
    st.binary(max_size=8).map(os.fsdecode),
).filter(_can_be_given)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(("1e400", "-0", "9" * 5000, "1_0", "0x10", "1e-400", "٣", "1j", "+5", "00")),
)
NESTED = st.recursive(
    st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text(), inner)
    ),
    max_leaves=6,
).map(repr)
ODD = st.sampled_from(
    (
        *("", "-", "'", "{}", "{[]: 1}", "(" * 300, "[" * 5000, "(1,", "1,,2", "None", "True"),
        *("'\\d'", "1if 1else 2", "__import__('os').getcwd()", "lambda: 0", "f'{1}'", "~nobody/x"),
        *("3+", "+", "0+0", "0+1+2+3+4+5+6+7+8+9", "(" + "1," * 9999 + ")", "a," * 9999),
    )
)
VALUES = st.one_of(TEXTS, NUMBERS, NESTED, ODD).filter(_can_be_given)
_PARTS = st.sampled_from(
    sorted({part for key in rules.RULES for part in key.split(".")} | {"trails", "", "a b", "x"})
)
KEYS = st.one_of(
    *[st.sampled_from(list(rules.RULES))] * 6,
    st.lists(_PARTS, min_size=1, max_size=3).map(".".join),
    TEXTS.filter(lambda text: "=" not in text),
)
FLAGS = st.one_of(
    st.sampled_from(
        (
            *(
                "--confg=x",
                "--wrkdir=x",
                "--report_only=perhaps",
                "--export=2",
                "digits",
                "-",
                "--",
            ),
            *("--flagfile=DIR/flags", "--undefok=x", "--noconfig", "--config", "--config=", "-x"),
            *("--config.=1", "--config..a=1", "--noconfig.trials", "---trials=1", "--help=3"),
        )
    ),
    TEXTS,
    st.tuples(st.sampled_from(("--", "-", "---", "--no")), TEXTS, VALUES).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    ),
).filter(lambda flag: not flag.lstrip("-").startswith("workdir"))


@st.composite
def overridden(draw):
    """The digits with one to three overrides, or flags, of any kind."""
    arguments = list(VALID.arguments)
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 5)) == 0:
            given = [draw(FLAGS)]
        else:
            key, value = draw(KEYS), draw(VALUES)
            joined = f"--config.{key}={value}"
            given = draw(st.sampled_from(([joined], joined.split("=", 1))))
        at = draw(st.sampled_from((len(arguments), len(arguments), 0)))
        arguments[at:at] = given
    return Case(tuple(arguments))


BODY = f"""import runpy
import ml_collections
import numpy as np
def get_config(name="x"):
    config = runpy.run_path({DIGITS!r})["get_config"]()
    config.trials, config.dataset.limit = 2, 200
    with config.unlocked():
        %s
    return config
"""
EXPRESSIONS = st.one_of(
    NESTED,
    NUMBERS.filter(lambda number: number not in ("٣", "00")),
    TEXTS.map(repr),
    st.sampled_from(
        (
            *("object()", "lambda: 0", "np.zeros(3)", "np.float32(1)", "np.nan", "float('inf')"),
            *("10**400", "-10**5000", "2**70", "1e308 * 10", "b'bytes'", "range(10**9)", "{1: 2}"),
            *("config", "ml_collections.ConfigDict()", "ml_collections.FrozenConfigDict()"),
            "ml_collections.config_dict.placeholder(int)",
            "ml_collections.config_dict.required_placeholder(int)",
            "ml_collections.FieldReference(3)",
            "type('T', (), {'__repr__': lambda self: 1 / 0})()",
            "type('T', (int,), {'__le__': lambda *_: 1 / 0})(3)",
            "type('T', (str,), {'__eq__': lambda *_: 1 / 0, '__hash__': str.__hash__})('x')",
            "('x',) * 10**5",
            "'\\ud800'",
        )
    ),
)
_DOTTED = st.one_of(
    st.sampled_from(list(rules.RULES)), st.sampled_from(("train", "unlearn", "new", "dataset.new"))
)
STATEMENTS = st.one_of(
    st.tuples(_DOTTED, EXPRESSIONS).map(lambda given: f"config.{given[0]} = {given[1]}"),
    st.tuples(_DOTTED, EXPRESSIONS).map(
        lambda given: f"del config.{given[0]}; config.{given[0]} = {given[1]}"
    ),
    _DOTTED.map("del config.{}".format),
    EXPRESSIONS.map("return {}".format),
    st.sampled_from(
        (
            *("raise SystemExit(0)", "raise SystemExit('x')", "exit()", "raise ValueError", "1/0"),
            *("raise OSError('disk')", "raise FileNotFoundError(2, 'gone')", "assert False"),
            *(
                "raise MemoryError",
                "raise RecursionError('deep')",
                "get_config()",
                "import nowhere",
            ),
            *("raise type('E', (Exception,), {'__str__': lambda self: 1})", "raise EOFError"),
            *("raise UnicodeDecodeError('utf-8', b'', 0, 1, '\\x1b[31m')", "raise GeneratorExit"),
            *("raise StopIteration", "raise BaseException('x')", "config.lock()", "return"),
            *("config.train.self = config", "config.update(x=config)", "config = dict(config)"),
            "import json; json.loads('{')",
        )
    ),
)
SOURCE = (ROOT / "configs" / "digits.py").read_bytes()
WHOLE = st.one_of(
    st.sampled_from(
        (
            *(b"", b"\0", b"\xff\xfe", b"config = 3", b"def get_config(:", b"get_config = 3"),
            *(b"def get_config(): pass", b"def get_config(a, b): pass", b"  x = 1\n y = 2"),
            *(b"# -*- coding: nothing -*-\n", b"from .x import y", b"import nowhere_to_be_found"),
            *(b"class get_config: pass", b"async def get_config(): pass", b"x = '" + b"a" * 10**5),
            *(b"(" * 10**4, b"x = " + b"-" * 10**5 + b"1", b"\xef\xbb\xbfx = 1", b"1 is 1\n1/0\n"),
            b"def get_config():\n    yield 1\n",
        )
    ),
    STATEMENTS.map(lambda statement: (BODY % statement).encode("utf-8", "surrogatepass")),
    STATEMENTS.map(lambda statement: (BODY % statement).encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
)


@st.composite
def written(draw):
    """A config file that is none, or lacks or holds something, or a path that leads nowhere."""
    if draw(st.integers(0, 9)) == 0:
        content = draw(st.sampled_from((PIPE, None, Link("mine.py"), Link("nowhere"))))
    else:
        content = draw(WHOLE)
    given = draw(st.sampled_from((*("DIR/mine.py",) * 6, "DIR/mine.py:7", "DIR/other.py", "DIR")))
    more = draw(st.sampled_from(((), (), ("--config.seed=1",), ("--config.trials=x",))))
    return Case((f"--config={given}", *more), (("mine.py", content),))


def damaged_source():
    """The digits' own config file, damaged."""
    return damaged(SOURCE, 2).map(
        lambda content: Case(("--config=DIR/mine.py",), (("mine.py", content),))
    )


CONFIGS = st.one_of(overridden(), overridden(), written(), damaged_source())
