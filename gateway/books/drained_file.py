"""Which replicas an operator drains, kept over a restart: drained.json in the data directory."""

import os
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger()

NAME = "drained.json"


class _Drained(msgspec.Struct):
    drained: dict[str, int]


class DrainedFile:
    """Names of replicas, each with how many streams may be on their way at a time."""

    def __init__(self, data: Path) -> None:
        self._path = data / NAME

    def read(self) -> dict[str, int]:
        """What was written last; nothing where that cannot be read, which is told."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("drained.unreadable", file=str(self._path), why=str(error))
            return {}
        try:
            return msgspec.json.decode(raw, type=_Drained).drained
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("drained.unreadable", file=str(self._path), why=str(error))
            return {}

    def write(self, drained: dict[str, int]) -> None:
        """Have it be these, whole or not at all; where that fails, it is told, and the drains go on until a restart."""
        beside = self._path.with_suffix(".new")
        try:
            with beside.open("wb") as file:
                file.write(msgspec.json.encode(_Drained(drained)))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as error:
            log.warning("drained.unwritten", file=str(self._path), why=str(error))
