"""`import tailbound` stays light, and does nothing but define names."""

import subprocess
import sys

HEAVY = (
    "transformers",
    "typer",
    "rich",
    "scipy.stats",
    "plotly",
    "sklearn",
    "matplotlib",
    "polars",
    "pyarrow",
    "datasketches",
    "tailbound.hf",
    "tailbound.lab",
)


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout


def test_import_loads_no_heavy_module():
    code = f"import sys, tailbound; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert fresh(code).strip() == "[]"


def test_attention_needs_none_of_them_either():
    code = (
        "import sys, torch, tailbound; x = torch.randn(1, 1, 4, 8); tailbound.attention(x, x, x, epsilon=0.1); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert fresh(code).strip() == "[]"


def test_import_registers_nothing_with_transformers():
    code = (
        "import transformers, tailbound; from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as f; "
        "print('tailbound' in f.valid_keys()); tailbound.hf; print('tailbound' in f.valid_keys()); "
        "tailbound.hf.install(); tailbound.hf.install(); print('tailbound' in f.valid_keys())"
    )
    assert fresh(code).split() == ["False", "False", "True"]


def test_an_unknown_name_is_an_attribute_error():
    code = "import tailbound\ntry: tailbound.nothing\nexcept AttributeError as e: print(e)"
    assert fresh(code).strip() == "module 'tailbound' has no attribute 'nothing'"
