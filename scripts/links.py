"""Ask every address outside that the documentation names whether it is there. Needs the network; `make links`.

Exit code 1 if one is gone. A server that refuses robots (403, 429) is named, and is no failure.
"""

import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"https?://[^\s)>\"'`]+")
REFUSED = {401, 403, 405, 429}


def addresses() -> dict[str, list[str]]:
    """Each address, and the files that name it."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.yml")]
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        for address in ADDRESS.findall(file.read_text(encoding="utf-8")):
            found.setdefault(address.rstrip(".,;"), []).append(file.name)
    return found


def answer(address: str) -> str:
    """What the server says: "200", another status, or why there is none."""
    asked = urllib.request.Request(address, headers={"User-Agent": "tailbound-links/1"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as reply:
            return str(reply.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def main() -> None:
    """Print a line for each address."""
    gone = 0
    for address, files in addresses().items():
        said = answer(address)
        good = said.startswith("2") or said in map(str, REFUSED)
        gone += not good
        print(f"{'' if good else 'GONE '}{said}  {address}  ({', '.join(files)})")
    sys.exit(1 if gone else 0)


if __name__ == "__main__":
    main()
