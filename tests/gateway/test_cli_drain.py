"""What `holdfast drain` says of how far a replica is."""

from typing import Any

import pytest

from gateway.cli_drain import ended, progress


def told(**more: Any) -> dict[str, Any]:
    """What the admin port says of a drained replica."""
    said = {"replica": "b", "draining": True, "at_once": 4, "moved": 0, "moving": 0, "left": {}, "alone": []}
    return {**said, "running": 0, "empty": False, "took_s": 3.21, **more}


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (told(moved=12, left={"seed cannot": 1}, empty=True),
         ["b: 12 streams moved, 1 left to finish, empty after 3.2 s; it may be stopped"]),
        (told(moved=1, empty=True), ["b: 1 stream moved, 0 left to finish, empty after 3.2 s; it may be stopped"]),
        (told(moved=3, left={"seed cannot": 2, "plain answers": 1}, running=3, alone=["m"]),
         ["b: 3 streams moved, 3 left to finish, 3 still there after 3.2 s; do not stop it yet",
          "no other server of m can take a stream now", "2 left: seed cannot", "1 left: plain answers"]),
        (told(draining=False), ["b: it was undrained meanwhile, and gets requests again"]),
    ],
)  # fmt: skip
def test_the_end_says_whether_it_may_be_stopped_and_what_is_left(said, lines):
    """In one line where it is empty; else with every reason."""
    assert ended(said).split("\n") == lines


def test_progress_is_one_line():
    """With the models that nobody else can take."""
    assert progress(told(moved=3, moving=4, running=9)) == "b: 3 moved, 4 on their way, 9 still there"
    assert progress(told(alone=["m"])).endswith("0 still there; no other server of m can take a stream now")
