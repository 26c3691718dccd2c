"""Constants of the C++ kernels, dropped one at a time: `make controls`.

They are compiled in, so each is changed in a copy of the sources, by its text, and the copy is built. Stored inputs
then go through the laws of `laws.py`: as built they hold, without the constant one is broken. Constants that a larger
one beside them hides whatever the input are not here; docs/engine.md names them.

    python tests/native/controls.py            all of them
    python tests/native/controls.py NAME ...   some
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trees import ROOT, build, changed

COUNT = 150


class Control(NamedTuple):
    """A text in a source that stands for a constant, what replaces it, and the inputs that then break a law."""

    source: str
    text: str
    instead: str
    inputs: str


CONTROLS = {
    "kRound32": Control("rows.cpp", "kRound32 = 0x1p-20;", "kRound32 = 0.0;", "exact_keys"),
    "coding": Control(
        "coding.h", "{norm, unit, up(up(norm_up(word", "{norm, unit, 0.0 * up(up(norm_up(word", "coded_query"
    ),
    "residual": Control(
        "coding.h", "bfloat16_up(residual)", "to_bfloat16(static_cast<float>(residual))", "one_component"
    ),
    "logit_roundings": Control("rows.cpp", "(gamma32(kernels", "(0.0 * gamma32(kernels", "opposite_keys"),
    "unit_roundoff": Control("answer.cpp", "(unit_roundoff(store.dtype)", "(0.0 * unit_roundoff(store.dtype)", "casts"),
    "smallest_step": Control(
        "answer.cpp", "(smallest_step(store.dtype)", "(0.0 * smallest_step(store.dtype)", "denormal_casts"
    ),
}


def case(query, key, value, epsilon, dtype=torch.float32, **options):
    from cases import Case

    return Case(*(x.to(dtype)[None, None] for x in (query, key, value)), epsilon, {"scale": 1.0, **options})


def uniform(gen, low, high, *shape):
    return low + (high - low) * torch.rand(*shape, generator=gen, dtype=torch.float64)


def exact_keys(gen):
    """Keys and a query coded without error, and logits of about 20,000: what is left is the scan's own rounding.

    Keys are 127 and 127 with 1 behind the rotation, on both sides of a centre of 0; words of the query 4063 and 50.
    """
    step = 1.0 + torch.randint(0, 128, (1,), generator=gen).double() / 128
    key = torch.tensor([[127.0, 127.0], [128.0, 126.0]]).double() * step
    unit = torch.randint(512, 1024, (1,), generator=gen).double() / 2.0**16
    query = torch.tensor([[4063.0 + 50.0, 4063.0 - 50.0]]).double() * unit / 2
    for _ in range(4):
        scale = 2e4 / float((query * key[:1]).sum()) * float(uniform(gen, 0.5, 1.0, 1))
        yield case(query, torch.cat([key, -key]), uniform(gen, -1, 1, 4, 2), 0.45, scale=scale)


def coded_query(gen):
    """Keys (s, -s) coded without error again; of the query, the second component of `H q` is no whole word."""
    step = 1.0 + torch.randint(0, 128, (1,), generator=gen).double() / 128
    key = torch.stack([step, step - 1.0 / 128]) * torch.tensor([[127.0, -127.0]]).double()
    second = uniform(gen, 0.1, 0.7, 1)
    query = torch.stack([1 + second, 1 - second], -1) * 0.6
    yield case(query, torch.cat([key, -key]), uniform(gen, -1, 1, 4, 2), 0.45)


def one_component(gen):
    """In one component nothing is coded but the key, and its residual lies along the query. A hidden key centres."""
    size = float(uniform(gen, 20, 400, 1))
    first = uniform(gen, 1, 2, 1)
    second = first + uniform(gen, 1, 2, 1) / size
    key = torch.stack([first, second, -first - second])
    seen = torch.tensor([True, True, False]).expand(1, 1, 1, 3)
    yield case(torch.full((1, 1), -size), key, uniform(gen, -1, 1, 3, 2), 0.45, attn_mask=seen)


def opposite_keys(gen):
    """Two long keys that the query hardly tells apart: each component of it is rounded to float32."""
    query = uniform(gen, 50, 100, 1, 2)
    key = torch.stack([query[:, 1], -query[:, 0]], -1) * 0.7
    yield case(
        query, torch.cat([key, -key]), torch.tensor([[1.0], [-1.0]]), 0.0, scale=float(uniform(gen, 0.7, 1.4, 1))
    )


def casts(gen):
    yield case(uniform(gen, -1, 1, 1, 4), uniform(gen, -1, 1, 3, 4), uniform(gen, 1, 2, 3, 2), 0.0, torch.bfloat16)


def denormal_casts(gen):
    small = uniform(gen, 1, 2, 3, 2) * 2.0**-22
    yield case(uniform(gen, -1, 1, 1, 4), uniform(gen, -1, 1, 3, 4), small, 0.0, torch.float16)


def judge(module, inputs):
    """How many stored inputs break a law, with the kernels of a built module."""
    spec = importlib.util.spec_from_file_location("tailbound._native", module)
    sys.modules["tailbound._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["tailbound._native"])
    from laws import check_certificate

    torch.set_num_threads(1)
    broken = 0
    for seed in range(COUNT):
        for one in globals()[inputs](torch.Generator().manual_seed(seed)):
            try:
                check_certificate(one, "index/scalar")
            except AssertionError as error:
                if "below the truth" not in str(error):
                    raise
                broken += 1
    return broken


def caught(module, inputs):
    command = [sys.executable, __file__, "--judge", str(module), inputs]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(names):
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder, "tree"), Path(folder, "build")
        tree.mkdir()
        shutil.copy(ROOT / "CMakeLists.txt", tree)
        shutil.copytree(ROOT / "csrc", tree / "csrc")
        whole = shutil.copy(build(tree, out), folder)
        for name in names or CONTROLS:
            control = CONTROLS[name]
            good = caught(whole, control.inputs)
            with changed(tree / "csrc" / control.source, control.text, control.instead, name):
                bad = caught(build(tree, out), control.inputs)
            missed += good > 0 or bad == 0
            print(f"{name}: {good} inputs break a law as built, {bad} without it", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--judge"]:
        print(judge(*sys.argv[2:]))
    else:
        sys.exit(main(sys.argv[1:]))
