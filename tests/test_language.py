"""Docstrings, comments and messages: plain technical English.

Docstrings begin with what a thing is or does, not with a question word, and some words that read
like a translation are refused everywhere.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
FILES = [
    ROOT / "train.py",
    *sorted(ROOT.glob("flaxdl/**/*.py")),
    *sorted(ROOT.glob("configs/*.py")),
    *sorted(ROOT.glob("benchmarks/*.py")),
    *sorted(ROOT.glob("docs/**/*.py")),
    *sorted(ROOT.glob("notebooks/*.py")),
]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
QUESTION_WORDS = ("What", "Where", "How", "Whether", "Which")
# Word → the word to use instead.
REFUSED = {
    "anew": "again",
    "thaw": "unfreeze",
    "thaws": "unfreezes",
    "thawed": "unfrozen",
    "goes on": "resumes, continues",
    "going on": "resuming, continuing",
    "gone on": "resumed, continued",
    "share of": "fraction of",
    "bears": "tolerates",
    "shall": "should, must",
    "besides": "in addition to, also",
    "likewise": "also",
    "is told": "is configured, gets",
    "are told": "are configured, get",
    "by itself": "automatically, by default, alone",
    "by themselves": "automatically, by default, alone",
}
_REFUSED = re.compile(
    r"\b(" + "|".join(r"\s+".join(words.split()) for words in REFUSED) + r")\b", re.IGNORECASE
)
_FIRST_WORD = re.compile(r"\s*([A-Za-z]+)")


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yields the docstrings of a module, its classes, their fields, and functions."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        before: ast.stmt | None = None
        for number, statement in enumerate(node.body):
            follows_field = isinstance(before, ast.Assign | ast.AnnAssign)
            match statement:
                case ast.Expr(ast.Constant(str()) as text) if number == 0 or follows_field:
                    yield text
            before = statement


def question_words(source: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of docstrings that begin with a question word, with a message."""
    for text in docstrings(ast.parse(source)):
        first = _FIRST_WORD.match(str(text.value))
        if first and first[1] in QUESTION_WORDS:
            line = str(text.value).strip().partition("\n")[0]
            yield text.lineno, f"docstring begins with {first[1]!r}: {line:.60}"


def refused_words(source: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of comments and strings with a refused word, with a message."""
    for first_line, text in [*strings(source), *comments(source)]:
        for found in _REFUSED.finditer(text):
            word = " ".join(found[0].lower().split())
            yield (
                first_line + text.count("\n", 0, found.start()),
                f"{word!r} is refused; write {REFUSED[word]}",
            )


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Yields first line and text of each string, and of the fixed parts of each f-string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields first line and text of each comment; those on consecutive lines are one."""
    first_line, texts = 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if texts and line != first_line + len(texts):
                yield first_line, "\n".join(texts)
                texts = []
            if not texts:
                first_line = line
            texts.append(token.string.removeprefix("#"))
    if texts:
        yield first_line, "\n".join(texts)


def test_texts_are_plain_english():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in FILES
        for source in [path.read_text(encoding="utf-8")]
        for line, fault in sorted([*question_words(source), *refused_words(source)])
    ]
    assert not found, f"{len(found)} texts to rewrite:\n" + "\n".join(found)


def test_pages_are_plain_english():
    found = [
        f"{path.relative_to(ROOT)}: {word[0]!r} is refused"
        for path in PAGES
        for word in _REFUSED.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"{len(found)} texts to rewrite:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('"""What a module is."""', 1),
        ('class A:\n    """\n    Which one."""', 2),
        ('def f():\n    """Whether it is."""', 2),
        ('class A:\n    a: int = 0\n    """How many."""', 3),
    ],
)
def test_a_question_word_at_the_beginning_of_a_docstring_is_found(source, line):
    assert [number for number, _ in question_words(source)] == [line]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("# compiled anew", 1),
        ('"""One.\n\nA run that goes\non."""', 3),
        ("x = 1\ny = f'a share of {x}'", 2),
        ("# it goes\n# on", 1),
        ("x = ('it is '\n     'told')", 1),
    ],
)
def test_a_refused_word_is_found(source, line):
    assert [number for number, _ in refused_words(source)] == [line]


def test_other_texts_pass():
    source = (
        '"""Whatever else."""\n# How it is done.\nx = "What"\nthaw_step = 0\nx()\n"""Where."""\n'
        'def f():\n    return "marshall"'
    )
    assert not [*question_words(source), *refused_words(source)]
