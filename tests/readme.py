"""What the documents tell people to paste."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRANSFER = re.compile(r"--kv-transfer-config\s+'([^']*)'")


def commands(heading: str) -> str:
    """The shell commands of a section of the README, as they stand there."""
    _, found, section = (ROOT / "README.md").read_text("utf-8").partition(f"\n## {heading}\n")
    assert found, f"the README has no section «{heading}»"
    blocks = re.findall(r"^```sh\n(.*?)^```$", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    return "".join(blocks)


def transfers() -> dict[str, Any]:
    """What follows `--kv-transfer-config` in the documents, read as vLLM does; by the place where it stands."""
    found = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, text in enumerate(TRANSFER.findall(path.read_text("utf-8"))):
            if text != "...":
                found[f"{path.name}:{number}"] = json.loads(text)
    return found
