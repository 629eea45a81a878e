"""When sessions began."""

from gateway.sessions import Sessions


def test_a_session_began_with_its_first_request():
    """Later ones change nothing; the same name under another key is another session."""
    sessions = Sessions()

    assert sessions.since("a", "s", 10.0) == 10.0
    assert sessions.since("a", "s", 20.0) == 10.0
    assert sessions.since("b", "s", 30.0) == 30.0


def test_of_many_sessions_those_used_last_are_remembered():
    """Clients name as many as they like; who is in use is not forgotten for them."""
    sessions = Sessions(sessions_max=3)
    for number in range(10):
        sessions.since("a", "in use", number + 0.5)
        sessions.since("a", f"s{number}", float(number))

    assert sessions.since("a", "in use", 100.0) == 0.5
    assert sessions.since("a", "s9", 100.0) == 9.0
    assert sessions.since("a", "s0", 100.0) == 100.0
