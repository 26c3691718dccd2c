"""Every block of the documentation: Python runs, commands parse, JSON loads; what does not run says so where it stands.

The blocks of a page share a namespace, from top to bottom. A page may use `model` and `inputs`: a small random Llama
and a prompt, as good as any for what is shown. Under a block, two notes change what happens:

    *Run by `make examples`, not by `make test`: <why>.*     needs TAILBOUND_EXAMPLES
    *Not run: <why>.*                                        never runs
"""

import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from sybil import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from llamas import llama, prompt
from tailbound.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = "TAILBOUND_EXAMPLES" in os.environ
LATER, NEVER = "*Run by `make examples`, not by `make test`:", "*Not run:"
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$(?P<after>.*?\n.*?\n)", re.DOTALL | re.MULTILINE)
EXTRA = re.compile(r"tailbound\[([\w,]+)\]")


def page_parameter(page):
    return pytest.param(page, id=page.name)


def python_blocks(page):
    return list(Document.parse(str(page), CodeBlockParser("python", PythonEvaluator())).examples())


def fences(language):
    for page in PAGES:
        for found in FENCE.finditer(page.read_text() + "\n\n"):
            named = found["language"] or ("shell" if found["body"].startswith("tailbound ") else "")
            if named == language:
                yield page.name, found["body"], found["after"]


@pytest.mark.parametrize("page", [page_parameter(page) for page in PAGES if "```python" in page.read_text()])
def test_python_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    if "model" in text and "from_pretrained" not in text:
        namespace = {"model": llama(), "inputs": {"input_ids": prompt(), "attention_mask": prompt() * 0 + 1}}
    else:
        namespace = {}
    left = []
    for example in python_blocks(page):
        note = text[example.end :].lstrip("`\n ")
        if note.startswith(NEVER) or (note.startswith(LATER) and not ALL):
            left.append(example.line)
            continue
        example.document.namespace.update(namespace)
        example.evaluate()
        namespace = {}
    if left:
        print(f"{page.name}: not run, lines {left}")


def test_every_fence_says_what_it_is():
    languages = {"python", "shell", "json", "text", "bibtex"}
    for page in PAGES:
        for found in FENCE.finditer(page.read_text() + "\n\n"):
            named = found["language"] in languages or found["body"].startswith("tailbound ")
            assert named, f"{page.name}: {found['body'][:60]!r}"


def test_json_blocks_load():
    found = [json.loads(body) for _, body, _ in fences("json")]
    assert found


def commands():
    for page, body, after in fences("shell"):
        if NEVER in after:
            continue
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.split(" < ")[0], comments=True)
            if words:
                yield pytest.param(words, id=f"{page}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_ones_that_there_are(words, monkeypatch):
    if "=" in words[0]:
        words = words[1:]
    program, *arguments = words
    match program:
        case "tailbound":
            parse(arguments)
        case "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in arguments if "=" not in word} <= set(targets)
        case "pip":
            named = {extra for word in arguments for group in EXTRA.findall(word) for extra in group.split(",")}
            assert named <= set(
                tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            )
        case "python":
            assert (ROOT / arguments[0]).is_file() or arguments[:2] == ["-m", "tests.families"]
        case _:
            assert program in ("git", "cd"), f"say what a test should do with {program}"


def parse(arguments):
    """As the command line does it, short of running."""
    command = typer.main.get_command(app)
    left = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[left.pop(0)]
    command.make_context(command.name, left)


def test_a_command_with_an_unknown_option_is_noticed():
    with pytest.raises(Exception, match=r"[Nn]o such option|no-such-option"):
        parse(["bench", "decode", "--no-such-option"])
