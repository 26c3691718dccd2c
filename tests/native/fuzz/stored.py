"""Stored inputs of the fuzz target: one a line in base64, `#` begins a remark. A file of lines is read in a review.

python stored.py unpack FOLDER OUT             every input of FOLDER/*.txt as a file in OUT
python stored.py pack FILE INPUT ... >> a.txt  inputs as lines; FILE's lines are not written again
"""

import base64
import hashlib
import shutil
import sys
from pathlib import Path


def inputs(file):
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [base64.b64decode(line, validate=True) for line in lines if line]


def unpack(folder, out):
    shutil.rmtree(out, ignore_errors=True)
    Path(out).mkdir(parents=True)
    for file in sorted(Path(folder).glob("*.txt")):
        for one in inputs(file):
            Path(out, f"{file.stem}-{hashlib.sha256(one).hexdigest()[:16]}").write_bytes(one)


def pack(file, *paths):
    known = set(inputs(Path(file))) if Path(file).exists() else set()
    for one in sorted({Path(path).read_bytes() for path in paths} - known, key=lambda one: (len(one), one)):
        print(base64.b64encode(one).decode())


if __name__ == "__main__":
    {"unpack": unpack, "pack": pack}[sys.argv[1]](*sys.argv[2:])
