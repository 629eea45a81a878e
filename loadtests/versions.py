"""Of what a result was made with: packages, Python, machine."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path


def versions(*packages: str) -> dict[str, str]:
    """Of this machine, this Python and the packages that it has."""
    found = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "a source tree"
    return found


def versions_beside(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """Of those packages, by how their names begin, that another environment has; its Python is not run."""
    sites = [str(one) for one in python.parent.parent.glob("lib/python*/site-packages")]
    beginnings = tuple(packages)
    return {one.name: one.version for one in distributions(path=sites) if (one.name or "").startswith(beginnings)}
