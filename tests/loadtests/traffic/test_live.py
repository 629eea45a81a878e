"""What a run looks like while it runs, as a terminal has it."""

from rich.console import Console

from loadtests.traffic.live import Live
from loadtests.traffic.options import Sla
from loadtests.traffic.record import Lines, Stage, Strain
from tests.loadtests.traffic.runs import failed, lines, whole


def screen(live: Live) -> str:
    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(live)
    return shown.get()


def test_a_terminal_sees_how_far_it_is_how_quick_and_what_failed():
    """Rates, quantiles of whole answers, stages, the words of errors; a direct twin of a request is not counted."""
    live = Live("chat at http://x", 30.0, Sla(ttft=0.5))
    live.take(lines(*(whole(n / 10, first_s=0.2) for n in range(10)), whole(1.0, where="direct")))
    live.take(lines(*(failed(2.0, Stage.REFUSED, status=503, code="overloaded", said="come again") for _ in range(3))))

    text = screen(live)

    assert "chat at http://x" in text
    assert "of 30 s" in text
    assert "13 in all" in text
    assert "refused 3   whole 10" in text
    assert "3 × refused: 503 overloaded come again" in text
    (ttft,) = (line.split() for line in text.splitlines() if line.startswith("TTFT"))
    assert all(195 < float(value) < 205 for value in ttft[1:])
    assert "at its limit" not in text


def test_it_says_when_the_generator_is_at_its_limit():
    """A core that is used up, or a process that wakes up late: of any of its processes."""
    for cpu, late_max_s in ((0.95, 0.0), (0.1, 0.2)):
        live = Live("chat", 30.0, Sla())
        live.take([Lines(strain=Strain(at_s=1.0, process=0, cpu=0.1, late_max_s=0.0, open=2))])
        live.take([Lines(strain=Strain(at_s=1.0, process=1, cpu=cpu, late_max_s=late_max_s, open=3))])

        text = screen(live)

        assert f"the generator is at its limit: {cpu:.0%} of a core, {late_max_s * 1e3:.0f} ms late" in text
        assert "5 open" in text


def test_elsewhere_a_line_comes_now_and_then():
    """Not one for every look."""
    live, console = Live("chat", 30.0, Sla()), Console(width=120, force_terminal=False)
    live.take(lines(whole(1.0)))
    with console.capture() as shown:
        live.plain(console)
        live.plain(console)

    (line,) = shown.get().splitlines()
    assert "1 requests" in line
