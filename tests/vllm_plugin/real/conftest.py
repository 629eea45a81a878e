"""What several files of real engines share."""

import sys
from types import ModuleType

import pytest

from tests.vllm_plugin import stores


@pytest.fixture(scope="module")
def store():
    """In this process's memory, in the place of the room of stores: both halves of every engine open it."""
    kept = stores.DictStore()
    room = ModuleType("vllm_plugin.store")
    room.open_store, room.Manifest, room.Page = lambda address, **options: kept, stores.Manifest, stores.Page
    before = sys.modules.get(room.__name__)
    sys.modules[room.__name__] = room
    yield kept
    if before is None:
        del sys.modules[room.__name__]
    else:
        sys.modules[room.__name__] = before
