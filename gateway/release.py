"""Which Holdfast this is."""

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Its version; "" where it runs from a source tree that nobody installed."""
    try:
        return version("holdfast")
    except PackageNotFoundError:
        return ""
