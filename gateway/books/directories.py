"""Where books are: of a gateway in its data directory, of the workers of one machine each in one of its own below."""

from pathlib import Path

JOURNAL = "journal.jsonl"


def directory(data: Path, number: int) -> Path:
    """Where a worker keeps its books."""
    return data / f"worker-{number}"


def directories(data: Path) -> list[Path]:
    """Where workers keep theirs, those of earlier starts among them."""
    return sorted((path for path in data.glob("worker-*") if path.is_dir()), key=lambda path: (len(path.name), path))


def journals(data: Path) -> list[Path]:
    """The journals of all that have books in a data directory."""
    return [path for at in (data, *directories(data)) if (path := at / JOURNAL).exists()]
