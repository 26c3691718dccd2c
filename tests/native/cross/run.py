"""The AArch64 kernels, cross-compiled and run under qemu: `make cross`.

Nothing but Python's standard library, a cross compiler and qemu's user mode is needed. Fails if one of these is
missing, if a check fails or none was made, if the level runs on a processor without its instruction, if that
instruction is found outside its unit, or if a kernel that is broken on purpose goes unseen.

    python tests/native/cross/run.py            all
    python tests/native/cross/run.py --quick    without the broken kernels
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
CXX = os.environ.get("CROSS_CXX", "aarch64-linux-gnu-g++")
OBJDUMP = os.environ.get("CROSS_OBJDUMP", "aarch64-linux-gnu-objdump")
QEMU = os.environ.get("CROSS_QEMU", "qemu-aarch64")
NEEDS = {CXX: "g++-aarch64-linux-gnu", OBJDUMP: "binutils-aarch64-linux-gnu", QEMU: "qemu-user"}
WORKERS = int(os.environ.get("WORKERS", "2"))

# As in CMakeLists.txt, which `main` looks up.
OPTIONS = ["-ffp-contract=off", "-fno-fast-math", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion"]
KERNELS = "kernels_neon.cpp"
MARCH = "-march=armv8.2-a+dotprod"
LEFT_OUT = {"module.cpp", "control.cpp", "kernels_avx2.cpp", "kernels_avx512vnni.cpp", "kernels_avx512bf16.cpp"}
PROGRAMS = ("kernels", "selection", "answers", "levels")


class Control(NamedTuple):
    """A text in the kernels, what replaces it, and the program and its part that must then fail."""

    text: str
    instead: str
    program: str
    part: str = ""


CONTROLS = {
    "components behind the last four": Control("  if (tail) {", "  if (false) {", "kernels", "scans"),
    "coarse plane": Control("vshlq_n_s32(coarse[r].high, 6)", "vshlq_n_s32(coarse[r].high, 5)", "kernels", "scans"),
    "error of a bracket": Control("broadcast(t.error)", "broadcast(0.0f)", "kernels", "scans"),
    "NaN at the top": Control("choose(below(than, x), x, than)", "choose(below(x, than), than, x)", "kernels", "tops"),
    "rounding of exp upwards": Control("1.0f + 0x1p-16f", "1.0f", "kernels", "weights"),
    "least weight": Control("return larger(weight, broadcast(kLeastWeight));", "return weight;", "kernels", "weights"),
    "sum of what is left out": Control("vcvt_high_f64_f32(small.high)", "vdupq_n_f64(0.0)", "selection", "cuts"),
    "keys at the threshold": Control("if (ties > 0)", "if (false)", "selection", "picks"),
    "rows of a key in a gather": Control(">> row & 1u) << j", ">> 0 & 1u) << j", "selection", "gathers"),
    "order of the keys of a batch": Control("vpaddq_f32(c, d)", "vpaddq_f32(d, c)", "selection", "gathers"),
    "residual, by whole answers": Control("broadcast(t.residual)", "broadcast(0.0f * t.residual)", "answers"),
}


def fail(text):
    sys.exit(f"cross: {text}")


def compile_one(source, out, *options):
    fixed = ["-std=c++17", *OPTIONS, "-DTAILBOUND_HAS_NEONDOT", f"-I{ROOT / 'csrc'}"]
    command = [CXX, *fixed, *options, "-c", str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{source} does not compile:\n{done.stderr}")
    if "warning:" in done.stderr:
        fail(f"{source} compiles with warnings:\n{done.stderr}")
    return out


def link(objects, out):
    # Static: the machine need not have a loader and libraries for AArch64 where qemu looks for them.
    # glibc warns that dlsym in a static program needs the same glibc at run time, hence no output.
    command = [CXX, "-static", "-pthread", *map(str, objects), "-o", str(out)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def run(program, *arguments, cpu="max", **environment):
    environment = {name: text for name, text in os.environ.items() if name != "TAILBOUND_ISA"} | environment
    command = [QEMU, "-cpu", cpu, str(program), *filter(None, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)


def build(folder):
    sources = [path for path in sorted((ROOT / "csrc").glob("*.cpp")) if path.name not in LEFT_OUT]
    jobs = [(path, folder / f"{path.stem}.o", "-O3", *([MARCH] if path.name == KERNELS else [])) for path in sources]
    jobs += [(ROOT / f"tests/native/cross/{name}.cpp", folder / f"test_{name}.o", "-O1") for name in PROGRAMS]
    with ThreadPoolExecutor(WORKERS) as pool:
        objects = list(pool.map(lambda job: compile_one(*job), jobs))
    return objects[: len(sources)], {name: folder / f"test_{name}.o" for name in PROGRAMS}


def check_leaks(objects):
    """The unit with the instruction is the only one that has it."""
    for path in objects:
        code = subprocess.run([OBJDUMP, "-d", path], capture_output=True, text=True, check=True).stdout
        found = re.search(r"\t[su]dot\t", code) is not None
        if found != (path.stem == Path(KERNELS).stem):
            fail(f"{path.stem} has {'a' if found else 'no'} dot product instruction")


def check_levels(program):
    """Chosen where the processor has the instruction, refused where not; names of other processors are refused."""
    expected = [
        ("max", "", "active neondot"),
        ("max", "neondot", "active neondot"),
        ("max", "scalar", "active scalar"),
        ("max", "avx2", "refused TAILBOUND_ISA=avx2: this processor or its operating system lacks it"),
        ("cortex-a53", "", "active scalar"),
        ("cortex-a53", "neondot", "refused TAILBOUND_ISA=neondot: this processor or its operating system lacks it"),
    ]
    for cpu, asked, line in expected:
        seen = run(program, cpu=cpu, **({"TAILBOUND_ISA": asked} if asked else {})).stdout
        if line not in seen or "built neondot" not in seen:
            fail(f"{cpu}, TAILBOUND_ISA={asked}: {line!r} is not in\n{seen}")
    print(f"levels: {len(expected)} choices as they should be")


def check_program(name, program):
    done = run(program)
    print(done.stdout, end="")
    made = sum(map(int, re.findall(r"(\d+) checks", done.stdout)))
    if done.returncode or made == 0:
        fail(f"{name}: exit code {done.returncode}, {made} checks {done.stderr}")
    return made


def check_control(name, control, objects, tests, folder):
    source = (ROOT / "csrc" / KERNELS).read_text()
    if source.count(control.text) != 1:
        fail(f"control {name}: {KERNELS} holds {control.text!r} {source.count(control.text)} times, not once")
    place = folder / re.sub(r"\W+", "_", name)
    place.mkdir()
    (place / KERNELS).write_text(source.replace(control.text, control.instead))
    broken = compile_one(place / KERNELS, place / "kernels.o", "-O1", "-w", MARCH)
    link([broken, *(o for o in objects if o.stem != Path(KERNELS).stem), tests[control.program]], place / "program")
    done = run(place / "program", control.part)
    failed = sum(map(int, re.findall(r"(\d+) failed", done.stdout)))
    if done.returncode != 1 or failed == 0:
        fail(f"control {name}: the broken kernel went unseen (exit code {done.returncode})\n{done.stdout}")
    return f"control {name}: {failed} checks failed, as they must"


def main(quick):
    missing = sorted(package for tool, package in NEEDS.items() if shutil.which(tool) is None)
    if missing:
        fail(f"needs {', '.join(missing)}: on Debian or Ubuntu, apt-get install {' '.join(missing)}")
    options = (ROOT / "CMakeLists.txt").read_text()
    if not all(option in options for option in [*OPTIONS, MARCH]):
        fail("CMakeLists.txt compiles with other options than this script")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        objects, tests = build(folder)
        check_leaks(objects)
        for test in PROGRAMS:
            link([*objects, tests[test]], folder / test)
        check_levels(folder / "levels")
        made = sum(check_program(test, folder / test) for test in PROGRAMS[:3])
        caught = 0
        if not quick:
            with ThreadPoolExecutor(WORKERS) as pool:
                for line in pool.map(lambda item: check_control(*item, objects, tests, folder), CONTROLS.items()):
                    print(line, flush=True)
                    caught += 1
    print(f"cross: {made} checks passed, {caught} broken kernels caught, under {QEMU}")


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
