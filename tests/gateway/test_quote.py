"""What a request may have while a breaker makes answers shorter, or is tried with little money."""

import json

import pytest

from gateway.books.tenants import OPEN, tenant
from gateway.ladder import Eased
from gateway.quote import Quotes, prompt_likely
from gateway.rates import BYTES_PER_TOKEN
from gateway.stream.call import Bounds, Call, Endpoint
from guards.budget import Limit, Unit, Window
from guards.burn import DAY, PASS_SHARE, PAUSE_WINDOWS, Plan
from guards.ladder import Step
from guards.refusal import Ending, Reason, Refused
from tests.gateway.test_breakers import DAILY, PRICE, SHORT_S, House, burn_at, key

PASS = int(DAILY.amount * PASS_SHARE)
PROMPT = 50  # as the server counts it


class Fleet:
    def window(self, model):
        return 100_000

    def may_retry(self):
        return True


class Asides:
    async def count(self, call):
        return PROMPT

    async def counts(self, call):
        return [PROMPT] * len(call.prompts)


@pytest.fixture
def house():
    return House()


@pytest.fixture
def quotes(house):
    return Quotes(
        house.ledger,
        Fleet(),
        Asides(),
        lambda call: (None, False),
        prices={"big": PRICE},
        lease_tokens=256,
        low_tokens=64,
        legs_max=4,
        breakers=house.breakers,
    )


def asked(name="r", **more):
    body = {"model": "big", "messages": [], "stream": True} | more
    return Call(Endpoint.CHAT, json.dumps(body).encode(), name, Bounds())


async def half_open(house, who):
    await house.burn(who, 60_000)
    await house.look(PAUSE_WINDOWS * SHORT_S)


def left(house):
    """Of the pass of the only breaker."""
    (circuit,) = house.breakers._circuits.values()
    return circuit.breaker.pass_left


@pytest.mark.parametrize(("own", "sent", "capped"), [(None, 1024, True), (5_000, 1024, True), (7, 7, False)])
async def test_a_degraded_answer_is_as_long_as_the_cap_or_as_its_client_wants(house, quotes, own, sent, capped):
    """Whichever is less; only the cap is ours."""
    who = key()
    await burn_at(house, who, 3.2, DAY[1].long_s)

    quote = await quotes.hold(asked(max_tokens=own), who)

    assert (quote.terms.max_tokens, quote.terms.capped) == (sent, capped)


async def test_a_request_on_trial_has_what_is_left_of_the_pass_and_no_more(house, quotes):
    """Its length is set by it, and its top-ups end there; what it leaves, the next one has."""
    who = key()
    await half_open(house, who)

    quote = await quotes.hold(asked(), who)
    assert (quote.terms.max_tokens, quote.terms.capped) == (PASS - PROMPT, True)
    assert left(house) == 0
    with pytest.raises(Refused) as caught:
        await quotes.hold(asked("s"), who)
    assert caught.value.reason is Reason.BREAKER

    with quote.hold as hold, quote.watch:
        hold.meter.prompt(PROMPT, last=True)
    assert left(house) == PASS - PROMPT


async def test_a_request_that_is_refused_gives_its_part_of_the_pass_back(house, quotes):
    """Another limit did not let it in."""
    poor = tenant("a", "alice", "acme", None, {"key:a": [DAILY, Limit(1)]}, plans={"": Plan()})
    await half_open(house, poor)

    with pytest.raises(Refused) as caught:
        await quotes.hold(asked(max_tokens=5), poor)

    assert caught.value.reason is Reason.BUDGET
    assert left(house) == PASS


async def test_a_prompt_that_the_pass_does_not_pay_is_told_so(house, quotes):
    """It is no question of its key's budget: it may come again."""
    small = tenant("a", "alice", "acme", None, {"key:a": [Limit(4_000, Window.DAY, Unit.MONEY)]}, plans={"": Plan()})
    await half_open(house, small)

    with pytest.raises(Refused, match="breaker half-open: key:a") as caught:
        await quotes.hold(asked(), small)

    assert (caught.value.reason, left(house)) == (Reason.BREAKER, 4_000 * PASS_SHARE)


@pytest.mark.parametrize(
    ("own", "capped", "cap"), [(None, True, Ending.SHORTENED), (7, False, Ending.BUDGET)], ids=["long", "short"]
)
async def test_an_answer_that_is_shortened_says_why_it_ends(quotes, own, capped, cap):
    """Not its budget did it."""
    quote = await quotes.hold(asked(max_tokens=own), OPEN, Eased((Step.SHORTER,), "big", Reason.LATE, 100))

    assert (quote.terms.capped, quote.terms.cap, quote.terms.max_tokens) == (capped, cap, own or 100)
    assert quote.headers == (("x-holdfast-degraded", "max_tokens=100"),)
    assert quote.about["degraded"] == ["shorter"]


async def test_a_breakers_shorter_cap_is_the_breakers(house, quotes):
    """Whichever is less ends the answer, and says so."""
    who = key()
    await burn_at(house, who, 3.2, DAY[1].long_s)

    quote = await quotes.hold(asked(), who, Eased((Step.SHORTER,), "big", Reason.LATE, 2_000))

    assert (quote.terms.max_tokens, quote.terms.cap) == (1024, Ending.BUDGET)
    assert quote.headers == (("x-holdfast-degraded", "max_tokens=1024"),)


@pytest.mark.parametrize(
    ("request_", "likely"),
    [
        ({"messages": [{"role": "user", "content": "x" * 399_000}]}, 100_000),
        ({"prompt": ["x" * 1_000_000, "x"]}, 200_000),
    ],
)
async def test_a_prompt_likely_takes_no_more_than_its_models_window(quotes, request_, likely):
    """Whatever its body weighs: what is padded, or holds images, would shut a server to everybody else."""
    raw = json.dumps({"model": "big", "stream": True} | request_).encode() + b" " * 1_000_000
    endpoint = Endpoint.CHAT if "messages" in request_ else Endpoint.COMPLETIONS

    quote = await quotes.hold(Call(endpoint, raw, "padded", Bounds()), OPEN)

    assert quote.terms.prompt_likely == likely


def test_a_short_prompt_is_taken_for_what_its_body_weighs():
    """Also where no server told the model's window."""
    call = asked()

    assert prompt_likely(call, None) == prompt_likely(call, 100_000) == call.body_bytes // BYTES_PER_TOKEN + 1
