"""Constants of the C++ kernels, dropped one at a time: `make controls`.

They are compiled in, so each is changed in a copy of the sources, by its text, and the copy is built. Stored inputs
then go through the laws of `laws.py`: as built they hold, without the constant one is broken. Constants that a larger
one beside them hides whatever the input are not here; docs/soundness.md names them.

    python tests/native/controls.py            all of them
    python tests/native/controls.py NAME ...   some
"""

import contextlib
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


class Patch(NamedTuple):
    """A text in a source of `csrc`, and what takes its place."""

    source: str
    text: str
    instead: str


class Control(NamedTuple):
    """What is dropped, and the inputs that then break a law: of certificates (below), or of contracts.py.

    `given` is changed on both sides: what stands in for a worse platform, or a larger constant that hides this one.
    With `flush` the kernels run where denormals are read and written as zero.
    """

    drops: tuple[Patch, ...]
    inputs: str
    impl: str = "index/scalar"
    given: tuple[Patch, ...] = ()
    flush: bool = False


SETTLE_FLOAT32 = Patch("settle.cpp", "kSumRoundings * 0x1p-24 + ", "")
WORSE_EXP = Patch(
    "kernels_scalar.cpp", "std::exp(from) * (1.0 + 2.0", "std::exp(from) * (1.0 - 7.0 * kUnit) * (1.0 + 2.0"
)

CONTROLS = {
    "kRound32": Control((Patch("rows.cpp", "kRound32 = 0x1p-20;", "kRound32 = 0.0;"),), "exact_keys"),
    "coding": Control(
        (Patch("coding.h", "{norm, unit, up(up(norm_up(word", "{norm, unit, 0.0 * up(up(norm_up(word"),), "coded_query"
    ),
    "residual": Control(
        (Patch("coding.h", "bfloat16_up(residual)", "to_bfloat16(static_cast<float>(residual))"),), "one_component"
    ),
    "logit_roundings": Control((Patch("rows.cpp", "(gamma32(kernels", "(0.0 * gamma32(kernels"),), "opposite_keys"),
    "unit_roundoff": Control(
        (Patch("answer.cpp", "(unit_roundoff(store.dtype)", "(0.0 * unit_roundoff(store.dtype)"),), "casts"
    ),
    "smallest_step": Control(
        (Patch("answer.cpp", "(smallest_step(store.dtype)", "(0.0 * smallest_step(store.dtype)"),), "denormal_casts"
    ),
    "kLeastWeight": Control(
        (Patch("kernels_avx2.cpp", "all(kLeastWeight)", "all(0x1p-126f)"),), "least_weights", "index/avx2"
    ),
    "kSumRoundings": Control(
        (Patch("sweep_read.cpp", "kSumError + gamma(n)", "gamma(n)"),),
        "equal_values",
        "index/avx2",
    ),
    "kWeightRelative": Control((Patch("rows.cpp", "kFloor + kWeightRelative", "kFloor"),), "weights_of_one_key"),
    "kWeightRounding": Control(
        (Patch("answer.cpp", "kWeightRounding = 1024.0", "kWeightRounding = 0.0"),), "masses_that_move"
    ),
    "kFloor32": Control((Patch("rows.cpp", "kFloor32 = 0x1p-90;", "kFloor32 = 0.0;"),), "ends_of_tiny_logits"),
    "kExpRelative": Control(
        (Patch("kernels_scalar.cpp", "(1.0 + 2.0 * kExpRelative), 0x1p-126", "1.0, 0x1p-126"),),
        "weights_barely_above",
        given=(WORSE_EXP,),
    ),
    "shrink": Control((Patch("scan.inc", " * (1.0f + 0x1p-22f)", ""),), "shrunk_weights"),
    "shrink-scalar": Control(
        (
            Patch(
                "kernels_scalar.cpp",
                "float_up(static_cast<double>(weights[i]) * static_cast<double>(factor))",
                "weights[i] * factor",
            ),
        ),
        "shrunk_weights",
    ),
    "settle-float32": Control((SETTLE_FLOAT32,), "cut_from_a_float32_sum"),
    "settle-float64": Control(
        (Patch("settle.cpp", "static_cast<double>(n + 1) * 0x1p-52", "0.0"),),
        "cut_from_a_float64_sum",
        given=(SETTLE_FLOAT32,),
    ),
    "kInputFlush": Control(
        (Patch("numbers.h", "kInputFlush = 0x1p-126;", "kInputFlush = 0.0;"),), "denormal_inputs", flush=True
    ),
    "pairs": Control((Patch("gathering.inc", "(kPairs ? 3.0 : 1.0)", "1.0"),), "logits_of_pairs"),
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


def least_weights(gen):
    """Keys that are left out, where the exponential of a vector kernel has ended and the truth has not."""
    end = -float(uniform(gen, 87.01, 87.3, 1))
    key = torch.tensor([[0.0]] + [[end]] * 40)
    yield case(torch.ones(1, 1), key, uniform(gen, -1, 1, 41, 1), 0.3)


def denormal_inputs(gen):
    """Denormal keys, or a denormal query, whose logits count because what meets them is large."""
    sign, query = torch.tensor([[1.0], [-1.0]]).double(), uniform(gen, 0.5, 1.0, 1, 1)
    for size, other in ((2.0**-127, 2.0**90), (2.0**90, 2.0**-127)):
        yield case(query * other, sign * size, sign, 0.0, scale=2.0**35)


def equal_values(gen):
    """Many keys, one value: the exact answer is that value, and what is left is the order of the sums."""
    value = uniform(gen, 1, 1.5, 1, 1).expand(300, 1)
    yield case(uniform(gen, -1, 1, 1, 4), uniform(gen, -1, 1, 300, 4), value, 0.0)


def judge(module, inputs, impl, flush):
    """How many stored inputs break a law, with the kernels of a built module."""
    spec = importlib.util.spec_from_file_location("tailbound._native", module)
    sys.modules["tailbound._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["tailbound._native"])
    if inputs not in globals():
        import contracts

        return getattr(contracts, inputs)(contracts.load(Path(module).with_name("libcontracts.so")))
    from laws import check_certificate

    torch.set_num_threads(1)
    broken = 0
    for seed in range(COUNT):
        for one in globals()[inputs](torch.Generator().manual_seed(seed)):
            try:
                check_certificate(one, impl, flush)
            except AssertionError as error:
                if "below the truth" not in str(error):
                    raise
                broken += 1
    return broken


def caught(module, control):
    command = [sys.executable, __file__, "--judge", str(module), control.inputs, control.impl]
    command += ["--flush"] if control.flush else []
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


CONTRACTS = """
add_library(contracts SHARED contracts.cpp)
target_include_directories(contracts PRIVATE csrc)
target_compile_options(contracts PRIVATE -O2 -ffp-contract=off)
target_compile_definitions(contracts PRIVATE $<TARGET_PROPERTY:tailbound_kernels,COMPILE_DEFINITIONS>)
target_link_libraries(contracts PRIVATE tailbound_kernels Threads::Threads ${CMAKE_DL_LIBS})
"""


def main(names):
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder, "tree"), Path(folder, "build")
        tree.mkdir()
        (tree / "CMakeLists.txt").write_text((ROOT / "CMakeLists.txt").read_text() + CONTRACTS)
        shutil.copy(Path(__file__).with_name("contracts.cpp"), tree)
        shutil.copytree(ROOT / "csrc", tree / "csrc")

        def tried(control, patches):
            with contextlib.ExitStack() as stack:
                for patch in patches:
                    stack.enter_context(changed(tree / "csrc" / patch.source, patch.text, patch.instead, name))
                return caught(build(tree, out), control)

        build(tree, out)
        whole = Path(folder, "whole")
        whole.mkdir()
        for library in (next(out.glob("_native*")), out / "libcontracts.so"):
            shutil.copy(library, whole)
        for name in names or CONTROLS:
            control = CONTROLS[name]
            good = tried(control, control.given) if control.given else caught(next(whole.glob("_native*")), control)
            bad = tried(control, control.given + control.drops)
            missed += good > 0 or bad == 0
            print(f"{name}: {good} inputs break a law as built, {bad} without it", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--judge"]:
        print(judge(*sys.argv[2:5], flush="--flush" in sys.argv))
    else:
        sys.exit(main(sys.argv[1:]))
