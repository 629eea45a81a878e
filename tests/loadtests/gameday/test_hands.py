"""The hands that a game day has in its servers: in pages of memory, in the page store, in front of the API."""

import json
import random

import pytest

from loadtests.gameday import page_hand, poison
from loadtests.gameday.page_hand import ANSWER, FILLING, PROMPT, PageHand, page_of
from loadtests.gameday.store_hand import KINDS, ROUTES, StoreHand
from vllm_plugin.store import Manifest, Page, open_store

SECRET = "a game day's"


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """As a server that was started by a game day has it."""
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv(page_hand.SECRET_FILE, str(tmp_path / "secret"))


@pytest.mark.parametrize(
    ("place", "computed", "pages"),
    [(PROMPT, 99, set()), (PROMPT, 100, {1, 2}), (ANSWER, 128, set()), (ANSWER, 165, {4}), (FILLING, 100, {3}),
     (FILLING, 96, set()), (FILLING, 128, set()), (FILLING, 127, set()), (FILLING, 165, {5})],
)  # fmt: skip
def test_a_page_of_a_running_request_is_of_its_place(place, computed, pages):
    """Of a prompt of 100 tokens and pages of 32: none before it is computed, and none that is about to be full."""
    found = {page_of(place, 100, computed, 32, random.Random(seed)) for seed in range(50)}

    assert found - {None} == pages


@pytest.mark.parametrize("said", ["", "another", SECRET + " "])
def test_nobody_without_the_secret_touches_a_page(secret, said):
    """Whoever reaches the server by RPC."""
    with pytest.raises(PermissionError):
        PageHand().holdfast_damage(said, "zero", 1, 0, 0)


def test_nobody_touches_a_page_of_a_server_that_no_game_day_started(monkeypatch):
    """No secret was given to it, so none is right."""
    monkeypatch.delenv(page_hand.SECRET_FILE, raising=False)
    with pytest.raises(PermissionError):
        PageHand().holdfast_damage("", "zero", 1, 0, 0)


@pytest.fixture
def stored(tmp_path):
    """A hand in a store of two pages, and their keys."""
    address = f"lmdb://{tmp_path / 'store'}?size=8MiB"
    store = open_store(address, populate=False)
    keys = [bytes([number]) * 40 for number in (1, 2)]
    pages = [random.Random(number).randbytes(4096) for number in (1, 2)]
    for number, (key, page) in enumerate(zip(keys, pages, strict=True)):
        manifest = Manifest(bytes([number]) * 16, key, 32 * number, 32, len(page), "form", "s", 0.0)
        assert store.put([Page(key, manifest, page)])
    hand = StoreHand(address, populate=False)
    yield hand, keys
    hand.close()
    store.close()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_page_is_damaged_behind_the_stores_back(stored, kind, route):
    """Its bytes are others, and its manifest says what it said."""
    hand, keys = stored
    before, manifests = hand.payload(keys[0]), hand.manifests()
    hand.keep(keys[1])

    assert hand.damage(kind, route, keys[0], keys[1], 3)
    assert hand.payload(keys[0]) != before
    assert hand.manifests() == manifests


def test_a_page_is_put_under_another_ones_key(stored):
    """With a digest that says it is right there, also under a key that nothing had."""
    hand, (one, other) = stored
    third = bytes(40)

    assert hand.put_under(one, other)
    assert hand.put_under(third, other)
    for key, position in ((one, 0), (third, 32)):
        assert hand.payload(key) == hand.payload(other)
        assert hand.manifests()[key].digest == hand.manifests()[other].digest
        assert hand.manifests()[key].position == position


async def answered(body, *, parts=1, method="POST"):
    """What becomes of a request: the status, and the body that the server behind has read."""
    size = -(-len(body) // parts) or 1
    pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    coming = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    sent, read = [], []

    async def receive():
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(message["body"])
        await send({"type": "http.response.start", "status": 200})

    await poison.Poison(app)({"type": "http", "method": method}, receive, send)
    return sent[0]["status"], b"".join(read)


@pytest.mark.parametrize("parts", [1, 3])
async def test_a_marked_request_is_failed_and_never_reaches_the_server(secret, parts):
    """However it comes."""
    body = json.dumps({"prompt": "x"} | poison.mark(SECRET)).encode()

    assert await answered(body, parts=parts) == (500, b"")


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON, but gameday-poison-", b'["gameday-poison-"]', b'{"user": 5, "x": "gameday-poison-"}',
     json.dumps({"prompt": "x"} | poison.mark("another")).encode(), json.dumps({"prompt": poison.PREFIX}).encode()],
)  # fmt: skip
@pytest.mark.parametrize("parts", [1, 3])
async def test_any_other_request_passes_as_it_came(secret, body, parts):
    """Also one that is marked by whoever does not know the secret."""
    assert await answered(body, parts=parts) == (200, body)
