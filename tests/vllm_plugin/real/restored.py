"""A real server with the plugin, asked twice: once whole, and once as a gateway asks a standby, behind what it has."""

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.local.engine import Engine, tiny_model
from tests.vllm_plugin.real.engine import REPOSITORY, installed

THINK, END = 8190, 8191  # ids of <think> and </think>
PROVED_S_MAX = 120.0
READY_S_MAX = 600.0
Chunks = list[list[int]]


def server(folder: Path, *arguments: str, model: Path | None = None, **extra: Any) -> Engine:
    """extra: of `kv_connector_extra_config`."""
    transfer = {
        "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"scrub": "all"} | extra,
    }  # fmt: skip
    return Engine(
        model or tiny_model(),
        log=folder / "vllm.log",
        arguments=["--no-async-scheduling", "--kv-transfer-config", json.dumps(transfer), *arguments],
        environment={
            "PYTHONPATH": os.pathsep.join([str(installed(folder / "installed")), str(REPOSITORY)]),
            "VLLM_PLUGINS": "holdfast",
        },
    )


def thinking_model(folder: Path) -> Path:
    """The tiny model, whose last two tokens are <think> and </think>."""
    shutil.copytree(tiny_model(), folder)
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text())
    model = said["model"]
    gone = {token for token, number in model["vocab"].items() if number in (THINK, END)}
    model["vocab"] = {token: number for token, number in model["vocab"].items() if token not in gone}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in gone]
    for number, text in ((THINK, "<think>"), (END, "</think>")):
        model["vocab"][text] = number
        said["added_tokens"].append({
            "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": False,
        })  # fmt: skip
    file.write_text(json.dumps(said))
    return folder


class Stream:
    """An answer, in events. choices: of each, what its events said, in order. last: the usage. chunks: of each choice,
    its tokens as they came.
    """

    def __init__(self, events: Sequence[dict[str, Any]], choices: int) -> None:
        self.choices: list[list[dict[str, Any]]] = [[] for _ in range(choices)]
        self.last = [event.get("usage") for event in events if not event["choices"]]
        for event in events:
            for choice in event["choices"]:
                more = {"usage": event["usage"]} if event.get("usage") else {}
                self.choices[choice["index"]].append(choice | more)
        self._events = events

    @property
    def chunks(self) -> list[Chunks]:
        return [[choice["token_ids"] for choice in one if choice.get("token_ids")] for one in self.choices]

    def cut(self, events: int) -> list[Chunks]:
        """What a client has who got so many events."""
        return Stream(self._events[:events], len(self.choices)).chunks

    def cuts(self, count: int) -> list[int]:
        """Some places, the first token, the last event but one and the last token among them."""
        places = [number for number in range(1, len(self._events) + 1) if any(self.cut(number))]
        if len(places) <= count:
            return places
        return sorted({places[round(at * (len(places) - 1) / (count - 1))] for at in range(count)})

    def beside(self, known: list[Chunks]) -> list[Any]:
        """To be compared with another one: of each choice what was known, event by event but for its logprobs, and all
        that followed, put together as a client does: vLLM makes one event of tokens that it cannot send fast enough.
        """
        return [_beside(one, sum(map(len, chunks))) for one, chunks in zip(self.choices, known, strict=True)]


def _beside(events: Sequence[dict[str, Any]], known: int) -> tuple[list[Any], dict[str, Any]]:
    before, after = [], {}
    for event in events:
        said = {name: value for name, value in event.items() if value is not None}
        ids = said.get("token_ids", [])
        if known > 0 and ids:
            before.append(without_ids(said | {"logprobs": None}))
        elif known <= 0:
            merge(after, without_ids(said))
        known -= len(ids)
    return before, after


def without_ids(said: dict[str, Any]) -> dict[str, Any]:
    """Of tool calls: they are random."""
    calls = said.get("delta", {}).get("tool_calls")
    if not calls:
        return said
    calls = [{name: value for name, value in call.items() if name != "id"} for call in calls]
    return said | {"delta": said["delta"] | {"tool_calls": calls}}


def merge(whole: dict[str, Any], more: dict[str, Any]) -> None:
    """Texts and lists grow; of what has an index, each by itself; of all else the last counts."""
    for name, value in more.items():
        if name == "tool_calls":
            for call in value:
                merge(whole.setdefault(name, {}).setdefault(call["index"], {}), call)
        elif isinstance(value, dict) and name != "usage":
            merge(whole.setdefault(name, {}), value)
        elif isinstance(value, str | list) and name not in ("role", "finish_reason", "stop_reason", "type"):
            whole[name] = whole[name] + value if name in whole else value
        elif value is not None:
            whole[name] = value


def ask(url: str, path: str, body: dict[str, Any]) -> Any:
    """The JSON, or, of a stream, its events. Raises urllib.error.HTTPError."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps({"model": "tiny"} | body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        said = response.read().decode()
    if not body.get("stream"):
        return json.loads(said)
    lines = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def stream(url: str, path: str, body: dict[str, Any], resume: Any = None) -> Stream:
    """resume: what the gateway says of the tokens that the client has."""
    body = {"stream_options": {"include_usage": True}} | body | {"stream": True, "return_token_ids": True}
    if resume is not None:
        body["vllm_xargs"] = {"holdfast_resume": resume if isinstance(resume, str) else json.dumps(resume)}
    return Stream(ask(url, path, body), int(body.get("n", 1)))


def differences(url: str, path: str, body: dict[str, Any], cuts: int) -> tuple[int, list[str]]:
    """Asked whole, and continued after some events: how often it was, and in what each differed that did."""
    whole = stream(url, path, body)
    found = []
    places = whole.cuts(cuts)
    for place in places:
        known = whole.cut(place)
        again = stream(url, path, body, known)
        for mine, theirs in zip(
            [*whole.beside(known), whole.last], [*again.beside(known), again.last], strict=True
        ):
            if mine != theirs:
                found.append(f"after {place} events: {mine} became {theirs}")
                break
    return len(places), found


def status(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "/holdfast/status", timeout=30) as response:
        return dict(json.loads(response.read()))


def continues(url: str) -> dict[str, Any]:
    """What it continues, once its canary has said so."""
    until_s = time.monotonic() + PROVED_S_MAX
    while (told := status(url))["continues"] is None:
        assert "not tried yet" in told["continues_not"], told["continues_not"]
        assert time.monotonic() < until_s, "its canary has said nothing"
    return dict(told["continues"])


def refusal(url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and the message of an error."""
    try:
        answer = ask(url, path, body)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    return 200, json.dumps(answer)
