"""Every example runs from top to bottom and says something. Those with a model run under `make examples`."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "certificates.ipynb"
SAYS = {
    "certify_one_call": r"the truth is never above the certificate",
    "theory_of_a_row": r"the smallest \(Thm 5\.6\) is the \w+ bound",
    "smollm2": r"30 layers, 135 million parameters",
    "certify_a_generation": r"certificates, none above 0\.01",
    "choose_a_budget": r"certificates, each within the budget of its own head",
    "needle": r"10%\s+dense\s+yes(.|\n)*90%\s+0\.2\s+(yes|no)",
}
QUICK = {"certify_one_call", "theory_of_a_row"}
ALL = "TAILBOUND_EXAMPLES" in os.environ


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name):
    if name not in QUICK and not ALL:
        pytest.skip("make examples runs it: it needs a model")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout), done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_uses_public_names_only(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
        elif isinstance(node, ast.Attribute):
            parts = [node.attr]
        else:
            continue
        assert not {"lab", "engine", "report", "cli"} & set(parts)
        assert not any(part.startswith("_") for part in parts)


def test_the_notebook_runs_from_top_to_bottom():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert "the certificate is never below the truth" in said


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
