"""A run's records as figures, and as one page."""

import json
from html.parser import HTMLParser
from http.client import IncompleteRead
from pathlib import Path

import msgspec
import pytest

from loadtests.traffic import looks as looks_module
from loadtests.traffic import page, report
from loadtests.traffic.looks import budgets, samples
from loadtests.traffic.record import Look, Record, Stage, Tail, Writer
from loadtests.traffic.report import Heard, NoRun, summary
from tests.loadtests.traffic.runs import BEGAN_S, failed, head, lines, whole

GAP = "holdfast_failover_gap_seconds_bucket"


def looks() -> tuple[Look, ...]:
    """Two: a failover of 0.15 s between them; memory and a budget grow."""
    first = {
        "process_resident_memory_bytes": 5e7,
        f"{GAP}{{le=0.1}}": 0.0,
        f"{GAP}{{le=0.2}}": 0.0,
        f"{GAP}{{le=+Inf}}": 0.0,
    }
    last = {
        "process_resident_memory_bytes": 6e7,
        f"{GAP}{{le=0.1}}": 0.0,
        f"{GAP}{{le=0.2}}": 1.0,
        f"{GAP}{{le=+Inf}}": 1.0,
    }
    last |= {"holdfast_build_info{version=1.2}": 2.0}
    last |= {"holdfast_failovers_total{cause=cut,model=m}": 1.0, "holdfast_refusals_total{reason=budget_exceeded}": 3.0}
    return (
        Look(at_s=BEGAN_S + 1, metrics=first, budgets={"user:a tokens/day": (10.0, 100.0)}),
        Look(at_s=BEGAN_S + 19, metrics=last, budgets={"user:a tokens/day": (90.0, 100.0)}),
    )


def run() -> list[Record]:
    """Ten seconds of one request a second, ten of two; every fifth is too slow for the promise, four fail."""
    sent = [float(n) for n in range(10)] + [10 + n / 2 for n in range(20)]
    records = [whole(at_s, first_s=0.9 if number % 5 == 0 else 0.1, tenant="a") for number, at_s in enumerate(sent)]
    records.append(
        failed(3.5, Stage.MID_STREAM, status=200, code="upstream_error", said="<script>alert(1)</script>", first_s=0.1)
    )
    records += [failed(4.5, Stage.REFUSED, status=503, code="overloaded") for _ in range(2)]
    records.append(failed(12.2, Stage.TRUNCATED, status=200, said="ended without [DONE]"))
    return [*records, failed(13.0, Stage.LEFT, status=200), failed(19.0, Stage.UNFINISHED)]


def test_rates_and_goodput_are_of_the_time_in_which_clients_came():
    """Offered, let in, whole, and kept within the promise; who hung up is in no share."""
    found = summary(head(), Heard(lines(*run())))
    first, second = found["steps"]

    assert (found["rates"]["requests"], found["rates"]["whole"], found["rates"]["good"]) == (36, 30, 24)
    assert found["rates"]["good_share"] == pytest.approx(24 / 34)
    assert (first["whole_per_s"], first["goodput_per_s"], first["errors"]) == (1.0, 0.8, 3)
    assert (second["whole_per_s"], second["goodput_per_s"], second["errors"]) == (2.0, 1.6, 1)
    assert found["tokens"]["counted_share"] == 1.0
    assert found["stages"] == {"left": 1, "mid-stream": 1, "refused": 2, "truncated": 1, "unfinished": 1, "whole": 30}
    most = found["errors"][0]
    assert (most["stage"], most["status"], most["code"], most["count"]) == ("refused", 503, "overloaded", 2)


def test_who_is_still_open_is_unknown_unless_it_is_too_late_for_it():
    """Too late for its first token, or for the whole of it: that is known before it ends."""
    still = [
        failed(1.0, Stage.UNFINISHED, status=200, first_s=first_s, end_s=end_s)
        for first_s, end_s in ((0.1, 2.0), (None, 0.4), (None, 0.6), (0.6, 2.0), (0.1, 4.0))
    ]
    asked = head(sla={"ttft": 0.5, "tpot": None, "e2e": 3.0})

    found = summary(asked, Heard(lines(whole(0.5), *still)))

    assert found["rates"]["good_share"] == pytest.approx(1 / 4)
    assert found["failed"] == 0


@pytest.mark.parametrize(
    ("records", "said", "unsaid"),
    [
        ([whole(1.0)], "Every stream was whole", "open when the run ended"),
        ([whole(1.0), failed(2.0, Stage.UNFINISHED)], "1 of 2 were open when the run ended", "Every stream was whole"),
        ([failed(2.0, Stage.UNFINISHED)], "None of 1 requests was answered", "Every stream"),
        ([failed(2.0, Stage.LEFT, status=200)], "No stream was to be whole", "None of"),
        ([failed(2.0, Stage.REFUSED, status=400 + n) for n in range(30)], "30 of 30 requests failed", "Every stream"),
    ],
)
def test_a_page_says_that_all_was_well_only_where_that_is_known(records, said, unsaid):
    """Requests that never ended are not whole, and failures are counted, however many kinds there are."""
    text = page.html(summary(head(), Heard(lines(*records))))

    assert said in text
    assert unsaid not in text


def test_a_quantile_that_too_few_requests_tell_is_not_told():
    """Thirty have no p99; a hundred have."""
    few = summary(head(), Heard(lines(*run())))["latency"]
    many = summary(head(), Heard(lines(*(whole(n / 10, first_s=n / 1000) for n in range(1, 101)))))["latency"]

    assert (few["TTFT"]["p50"], few["TTFT"]["p90"], few["TTFT"]["p99"]) == (0.1, 0.9, None)
    assert many["TTFT"]["p99"] == pytest.approx(0.099, abs=0.002)
    assert few["ITL"]["p99"] == pytest.approx(0.01, rel=0.03)
    assert few["TPOT"]["p50"] == pytest.approx(0.01)


def test_what_is_added_is_the_difference_within_pairs():
    """However much requests differ from each other; where one of two failed there is no pair."""
    records = []
    for number in range(40):
        slow = number * 0.05
        records.append(whole(number / 3, first_s=0.1 + slow + 0.002, pair=f"p{number}"))
        records.append(whole(number / 3 + 0.01, first_s=0.1 + slow, pair=f"p{number}", where="direct"))
    records.append(whole(15.0, pair="half"))
    records.append(failed(15.0, Stage.CONNECT, pair="half", where="direct"))
    found = summary(head(), Heard(lines(*records)))

    added = found["paired"]["TTFT"]
    assert (added["values"], added["broken"], added["median"]) == (40, 1, pytest.approx(0.002))
    assert added["low"] == pytest.approx(0.002)
    assert found["paired"]["TPOT"]["median"] == pytest.approx(0.0, abs=1e-9)
    assert found["rates"]["requests"] == 41  # what is asked directly is not the gateway's


def test_what_the_gateway_says_is_shown_since_the_first_look():
    """Memory as it was, counters as they grew."""
    found = summary(head(), Heard(lines(*run(), looks=looks())))["gateway"]

    assert found["rss_bytes"] == [(1.0, 5e7), (19.0, 6e7)]
    assert found["versions"] == ["1.2"]
    assert (found["failovers"], found["refusals"]) == (1.0, {"budget_exceeded": 3.0})
    assert [(one["upto_s"], one["count"]) for one in found["failover_gap"]] == [(0.1, 0.0), (0.2, 1.0), (None, 0.0)]
    assert found["budgets"]["user:a tokens/day"] == [(1.0, 10.0, 100.0), (19.0, 90.0, 100.0)]


def test_counters_grow_over_restarts_and_looks_without_an_answer(monkeypatch):
    """Of each worker by itself: what it had before its first answer is not this run's."""
    one, two = 1000.5, 2000.25  # when processes started
    said = {
        "a": iter([None, (one, 7), (one, 9), None, (two, 2), (two, 2)]),
        "b": iter([(one, 3), (one, 4), None, (two, 4), (two, 5), None]),
    }

    def answer(url):
        root, _, what = url.partition("/")
        if what != "metrics" or (told := next(said[root])) is None:
            raise IncompleteRead(b"")
        return (
            f"process_start_time_seconds {told[0]}\n# TYPE holdfast_failovers counter\n"
            f"holdfast_failovers_total {told[1]}\nholdfast_waiting 1\n"
        ).encode()

    monkeypatch.setattr(looks_module, "_get", answer)
    watch = looks_module.Watch(("a", "b"))

    found = [watch.look().metrics for _ in range(6)]

    assert [one["holdfast_failovers_total"] for one in found] == [0, 1, 3, 7, 10, 10]
    assert [one["holdfast_waiting"] for one in found] == [1, 2, 1, 1, 2, 1]


def test_a_gateways_own_words_are_read():
    """Its exposition, of which little is kept, and its list of budgets."""
    text = '# TYPE holdfast_failovers counter\nholdfast_failovers_total{model="m",cause="cut"} 2\nother 1\n'
    limit = {"unit": "tokens", "window": "day", "amount": 100, "spent": 7}

    assert dict(samples(text)) == {"holdfast_failovers_total{cause=cut,model=m}": 2.0}
    assert dict(budgets({"data": [{"scope": "org:x", "limits": [limit]}]})) == {"org:x tokens/day": (7.0, 100.0)}


class Page(HTMLParser):
    """Looks for what a page would fetch or run, and for tags that are left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "path", "circle", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle", "rect"):
            assert self.open.pop() == tag


def test_the_page_stands_alone(tmp_path: Path):
    """No script, nothing fetched, all tags closed, a server's words are text; JSON with the same beside it."""
    writer = Writer(tmp_path, "process-0")
    for line in lines(*run(), looks=looks()):
        writer.write(**{name: value for name, value in msgspec.structs.asdict(line).items() if value})
    writer.close()
    (tmp_path / report.HEAD).write_text(json.dumps(head()))

    text = report.write(tmp_path, tmp_path / "out" / "r.html").read_text()

    page = Page(text)
    assert (page.open, page.links, "script" in page.tags) == ([], [], False)
    assert "url(" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "prefers-color-scheme:dark" in text
    for title in ("TTFT, by when", "Goodput against offered load", "Failovers: 1", "Memory of the gateway", "Budgets"):
        assert title in text
    assert json.loads((tmp_path / "out" / "r.json").read_text())["rates"]["good"] == 24


def test_records_are_read_as_they_come_and_half_a_line_waits(tmp_path: Path):
    """As a process writes it; what a killed one left behind is left out."""
    tail, path = Tail(tmp_path), tmp_path / "process-0.jsonl"
    line = msgspec.json.encode({"request": whole(1.0)}) + b"\n"
    path.write_bytes(line + line[:20])

    assert len(list(tail.read())) == 1
    path.write_bytes(line + line + b'{"request": {\n' + line)
    assert [one.request is not None for one in tail.read()] == [True, True]
    assert list(tail.read()) == []


def test_a_folder_without_a_run_is_told(tmp_path: Path):
    """And no page is made of nothing."""
    with pytest.raises(NoRun, match="no run is there"):
        report.write(tmp_path, tmp_path / "r.html")
