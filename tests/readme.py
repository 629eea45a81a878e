"""What the documents tell people to paste, and what their tables say."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRANSFER = re.compile(r"--kv-transfer-config\s+'([^']*)'")


def section(heading: str, file: str = "README.md") -> str:
    """The text under a heading of a document, to the next one."""
    _, found, rest = (ROOT / file).read_text("utf-8").partition(f"\n## {heading}\n")
    assert found, f"{file} has no section «{heading}»"
    return rest.partition("\n## ")[0]


def commands(heading: str) -> str:
    """The shell commands of a section of the README, as they stand there."""
    return "".join(re.findall(r"^```sh\n(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL))


def table(heading: str, file: str = "README.md") -> list[dict[str, str]]:
    """The rows of the first table of a section, by the names of its columns. Cells are as they are written."""
    found = re.search(r"^\|.*(?:\n\|.*)*", section(heading, file), re.MULTILINE)
    assert found, f"«{heading}» of {file} has no table"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]
    names, _, *rows = lines
    return [dict(zip(names, row, strict=True)) for row in rows]


def transfers() -> dict[str, Any]:
    """What follows `--kv-transfer-config` in the documents, read as vLLM does; by the place where it stands."""
    found = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, text in enumerate(TRANSFER.findall(path.read_text("utf-8"))):
            if text != "...":
                found[f"{path.name}:{number}"] = json.loads(text)
    return found
