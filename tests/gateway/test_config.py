"""holdfast.yaml: what is accepted, and that every error says where it is and what to write instead."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.books.vault.engines import open_vault
from gateway.books.vault.redis import RedisVault
from gateway.books.vault.redis_server import Login
from gateway.books.vault.sqlite import SqliteVault
from gateway.config import Config, is_loopback, parse_limit, parse_rate
from gateway.config_file import FILE_BYTES_MAX, ConfigErrors, from_upstreams, load, overridden
from gateway.vault_url import VaultUrl
from guards.budget import Limit, Unit, Window
from guards.burn import DAY, MONTH, OFF, Plan, State, Tier
from guards.rate import Counted, Rate

EXAMPLE = Path(__file__).parents[2] / "docs" / "holdfast.example.yaml"
SHA = hashlib.sha256(b"x").hexdigest()
BASE = """\
models:
  - name: tiny
    replicas:
      - url: http://127.0.0.1:8001
      - url: http://127.0.0.1:8002
        role: standby
"""


def errors_of(tmp_path: Path, text: str | bytes, **environ: str) -> list[str]:
    """All errors of a file, without the directory."""
    path = tmp_path / "holdfast.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigErrors) as caught:
        load(path, environ)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def loaded(tmp_path: Path, text: str, **environ: str) -> Config:
    path = tmp_path / "holdfast.yaml"
    path.write_text(text)
    return load(path, environ)


def test_example_is_valid():
    """The example in docs/ loads, and its values are the defaults it says they are."""
    config = load(EXAMPLE, {"UPSTREAM_KEY": "sesame", "ALICE_SHA256": SHA})

    assert [replica.name for replica in config.replicas] == ["127.0.0.1:8001", "127.0.0.1:8002", "far"]
    assert config.keys[0].tokens == Limit(100_000, Window.DAY)
    assert config.replicas[2].key is not None
    assert config.replicas[2].key.get_secret_value() == "sesame"
    parts = ("timeouts", "health", "integrity", "limits", "listen", "admission")
    assert [getattr(config, name) for name in parts] == [Config.model_fields[name].default for name in parts]
    named = set(EXAMPLE.read_text().replace("#", " ").replace(":", " ").split())
    for part in (*(getattr(config, name) for name in parts), *config.tiers[0].classes):
        assert set(type(part).model_fields) <= named


def test_secrets_are_not_printed():
    """An upstream key does not show when a configuration is printed."""
    assert "sesame" not in repr(from_upstreams(["http://10.0.0.1"], key="sesame"))


ONE_ERROR = {
    "a breaker that is neither on nor off": (
        BASE + "breaker: maybe\n",
        "holdfast.yaml:7:10: breaker: must be on or off. Write breaker: on, or day: and month: below it.",
    ),
    "an alarm that is none": (
        BASE + "breaker: {day: {open: 5}}\n",
        'holdfast.yaml:7:23: breaker.day.open: not an alarm. Write how fast, and for how long, such as "14.4x over 1h"'
        ' or "4.8x over 15m".',
    ),
    "an alarm that is no alarm": (
        BASE + "breaker: {day: {open: 1x over 1h}}\n",
        "holdfast.yaml:7:23: breaker.day.open: an alarm is above 1x, over a minute to a week."
        ' Write how fast, and for how long, such as "14.4x over 1h" or "4.8x over 15m".',
    ),
    "an alarm after all is gone": (
        BASE + "budgets: [{org: acme, breaker: {day: {open: 25x over 1h}}}]\n",
        "holdfast.yaml:7:32: budgets[0].breaker: the budget of a day would be gone before the alarm."
        " Make it shorter, or less.",
    ),
    "alarms the wrong way round": (
        BASE + "breaker: {month: {open: 5x over 1h}}\n",
        "holdfast.yaml:7:10: breaker: open must be above degrade for a month."
        " Unsaid, they are 14.4x over 60m and 6x over 360m.",
    ),
    "a breaker that opens for longer than it may": (
        BASE + "health: {breaker_open_s: 90}\n",
        "holdfast.yaml:7:9: health: breaker_open_s is above breaker_open_s_max. Unsaid, breaker_open_s_max is 60.",
    ),
    "flapping that waits for longer than it may": (
        BASE + "health: {flap_wait_s: 5, flap_wait_s_max: 4}\n",
        "holdfast.yaml:7:9: health: flap_wait_s is above flap_wait_s_max. Unsaid, flap_wait_s_max is 120.",
    ),
    "corrupt pages below none": (
        BASE + "integrity: {corrupt_pages_max: -1}\n",
        "holdfast.yaml:7:32: integrity.corrupt_pages_max: must be at least 0. Write a whole number from 0 to 1000000.",
    ),
    "a window in words": (
        BASE + "integrity:\n  window_s: 10m\n",
        "holdfast.yaml:8:13: integrity.window_s: must be a number. Write a number from 10 to 604800.",
    ),
    "a drain that is neither on nor off": (
        BASE + "integrity: {drain: maybe}\n",
        "holdfast.yaml:7:20: integrity.drain: must be true or false. Write true or false.",
    ),
    "a limit on pages by another name": (
        BASE + "integrity: {corrupt_page_max: 3}\n",
        'holdfast.yaml:7:13: integrity.corrupt_page_max: unknown field. Did you mean "corrupt_pages_max"?',
    ),
    "a share that is none": (
        BASE + 'alerts: {at: ["120%"]}\n',
        'holdfast.yaml:7:15: alerts.at[0]: not a share of a budget. Write shares of a budget, such as "80%".',
    ),
    "a webhook without encryption": (
        BASE + "alerts: {webhook: {url: http://a.example/x, secret: whsec_" + "A" * 40 + "}}\n",
        "holdfast.yaml:7:19: alerts.webhook: a webhook beyond the house is https."
        " Write https://, or allow_private: true.",
    ),
    "a webhook's password": (
        BASE + "alerts: {webhook: {url: https://a:b@c.example/x, secret: whsec_" + "A" * 40 + "}}\n",
        "holdfast.yaml:7:25: alerts.webhook.url: a webhook's URL holds no user, no password and no fragment."
        ' Write an address such as "https://hooks.example.com/holdfast".',
    ),
    "a secret that is too short": (
        BASE + "alerts: {webhook: {url: https://a.example/x, secret: whsec_AAAA}}\n",
        "holdfast.yaml:7:54: alerts.webhook.secret: must hold 24 to 64 bytes."
        ' Write secret: "${NAME}" and set NAME to whsec_ and the base64 of 24 to 64 random bytes.',
    ),
    "a secret that is no base64": (
        BASE + "alerts: {webhook: {url: https://a.example/x, secret: sesame!}}\n",
        "holdfast.yaml:7:54: alerts.webhook.secret: must be whsec_ and base64."
        ' Write secret: "${NAME}" and set NAME to whsec_ and the base64 of 24 to 64 random bytes.',
    ),
    "a step without a cheaper model": (
        BASE + "degrade: {steps: [cheaper]}\n",
        "holdfast.yaml:7:18: degrade.steps: no model has a cheaper one. Add cheaper: to one of models, or remove this "
        "step.",
    ),
    "a step that nobody foresees": (
        BASE + "admission: {on: false}\ndegrade: {steps: [shorter]}\n",
        "holdfast.yaml:8:18: degrade.steps: nobody foresees a refusal while admission is off. Remove them, or let "
        "requests wait in the gateway: admission: {on: true}.",
    ),
    "a step twice": (
        BASE + "degrade: {steps: [shorter, shorter]}\n",
        "holdfast.yaml:7:18: degrade.steps: the same step twice. Write each once, in the order in which they are "
        "tried.",
    ),
    "an unknown cheaper model": (
        BASE.replace("name: tiny", "name: tiny\n    cheaper: tinier"),
        "holdfast.yaml:3:14: models[0].cheaper: no such model. Name another one of models.",
    ),
    "a model instead of itself": (
        BASE.replace("name: tiny", "name: tiny\n    cheaper: tiny"),
        "holdfast.yaml:3:14: models[0].cheaper: cheaper models in a circle. Leave it out for the cheapest.",
    ),
    "a cheaper model without a price": (
        BASE.replace("name: tiny", "name: tiny\n    cheaper: tinier")
        + "  - {name: tinier, replicas: [{url: http://127.0.0.1:8003}]}\n"
        + "prices: [{model: tiny, input: 1, output: 2}]\n",
        "holdfast.yaml:3:14: models[0].cheaper: the cheaper model has no price. Add it to prices.",
    ),
    "unknown field": (
        BASE.replace("role:", "rol:"),
        'holdfast.yaml:6:9: models[0].replicas[1].rol: unknown field. Did you mean "role"?',
    ),
    "unknown field, nothing close": (
        BASE + "listen: {zzz: 1}\n",
        "holdfast.yaml:7:10: listen.zzz: unknown field. Known here: host, port, admin_host, admin_port.",
    ),
    "unknown field without a value": (
        BASE + "kezs:\n",
        'holdfast.yaml:7:1: kezs: unknown field. Did you mean "keys"?',
    ),
    "enum": (
        BASE.replace("standby", "standbye"),
        'holdfast.yaml:6:15: models[0].replicas[1].role: must be active or standby. Did you mean "standby"?',
    ),
    "status": (
        BASE + "budget_status: 500\n",
        "holdfast.yaml:7:16: budget_status: must be 402, 403, 422 or 429. Write one of these.",
    ),
    "missing": (
        BASE + f"keys:\n  - sha256: {SHA}\n",
        'holdfast.yaml:8:5: keys[0].user: required, but missing. Add "user: ...".',
    ),
    "a budget of nobody": (
        BASE + "budgets:\n  - limits: [1/day]\n",
        'holdfast.yaml:8:5: budgets[0]: names nobody. Add "org: ...", "team: ..." or "user: ...".',
    ),
    "a budget of two": (
        BASE + "budgets:\n  - {team: a, user: b, limits: [1/day]}\n",
        "holdfast.yaml:8:5: budgets[0]: names both a team and a user. Write one entry for each.",
    ),
    "a budget twice": (
        BASE + "budgets:\n  - {org: a, limits: [1/day]}\n  - {org: a, limits: [1/hour, 2/day]}\n",
        "holdfast.yaml:9:31: budgets[1].limits[1]: the same kind of limit twice. "
        "budgets[0].limits[0] is one. Keep one of them.",
    ),
    "a key's budget twice": (
        BASE + f"keys:\n  - {{user: a, sha256: {SHA}, tokens: 1/day, limits: [5/day]}}\n",
        f"holdfast.yaml:8:{len(SHA) + 49}: keys[0].limits[0]: the same kind of limit twice. "
        "keys[0].tokens is one. Keep one of them.",
    ),
    "a key twice": (
        BASE + f"keys:\n  - {{user: a, sha256: {SHA}}}\n  - {{user: b, sha256: {SHA}}}\n",
        "holdfast.yaml:9:23: keys[1].sha256: the same key twice. keys[0] has it. Keep one.",
    ),
    "a budget without limits": (
        BASE + "budgets:\n  - {org: a}\n",
        'holdfast.yaml:8:5: budgets[0]: no limits. Add "limits: [50.00 USD/month]", or each_session, each_agent, '
        "each_turn, rates, breaker, timeouts, over_context, tier.",
    ),
    "a budget of what nobody counts": (
        BASE + "budgets:\n  - {org: a, limits: [5 beans/day]}\n",
        "holdfast.yaml:8:23: budgets[0].limits[0]: unknown unit of a budget. Write tokens or dollars per window, "
        'such as "100000/day", "10k output tokens/hour" or "5.00 USD/month"; windows: minute, hour, day, month, total.',
    ),
    "a price finer than money": (
        BASE + "prices:\n  - {model: tiny, input: 0.0000001, output: 1}\n",
        "holdfast.yaml:8:26: prices[0].input: not an amount of dollars. "
        "Write dollars with at most six decimals, such as 12.50.",
    ),
    "a price twice": (
        BASE + "prices:\n  - {model: a, input: 1, output: 1}\n  - {model: a, input: 2, output: 1}\n",
        "holdfast.yaml:9:13: prices[1].model: the same model twice. prices[0] has it. Keep one.",
    ),
    "not a number": (
        BASE + "limits: {legs: many}\n",
        "holdfast.yaml:7:16: limits.legs: must be a whole number. Write a whole number from 1 to 64.",
    ),
    "too small": (
        BASE + "timeouts: {probe_s: 0}\n",
        "holdfast.yaml:7:21: timeouts.probe_s: must be at least 0.01. Write a number from 0.01 to 60.",
    ),
    "too large": (
        BASE + "listen: {port: 65536}\n",
        "holdfast.yaml:7:16: listen.port: must be at most 65535. Write a whole number from 0 to 65535.",
    ),
    "not finite": (
        BASE + "timeouts: {total_s: nan}\n",
        "holdfast.yaml:7:21: timeouts.total_s: must be a number. Write a number from 1 to 86400.",
    ),
    "truth": (
        BASE + "allow_media_urls: perhaps\n",
        "holdfast.yaml:7:19: allow_media_urls: must be true or false. Write true or false.",
    ),
    "list for mapping": (
        BASE + "listen: [1]\n",
        'holdfast.yaml:7:9: listen: must be a mapping. Write "name: value" lines below it.',
    ),
    "mapping for list": (
        BASE + "keys: {user: alice}\n",
        'holdfast.yaml:7:7: keys: must be a list. Start each item below it with "- ".',
    ),
    "url scheme": (
        BASE.replace("http://127.0.0.1:8001", "127.0.0.1:8001"),
        "holdfast.yaml:4:14: models[0].replicas[0].url: must start with http:// or https:// and a host. "
        'Write the server\'s root, such as "http://10.0.0.5:8000".',
    ),
    "url path": (
        BASE.replace("8001", "8001/v1"),
        "holdfast.yaml:4:14: models[0].replicas[0].url: a URL holds no path and no query. "
        'Write the server\'s root, such as "http://10.0.0.5:8000", without /v1.',
    ),
    "url user": (
        BASE.replace("127.0.0.1:8001", "me:hush@127.0.0.1"),
        "holdfast.yaml:4:14: models[0].replicas[0].url: a URL holds no user or password. "
        'Put the upstream key into "key", from the environment.',
    ),
    "variable": (
        BASE + "        key: ${NOPE}\n",
        "holdfast.yaml:7:14: models[0].replicas[1].key: environment variable NOPE is not set. "
        "Set it, or write ${NOPE:-default}.",
    ),
    "malformed variable": (
        BASE + "        key: x${NO-PE}\n",
        "holdfast.yaml:7:14: models[0].replicas[1].key: not a variable. Write ${NAME} or ${NAME:-default}.",
    ),
    "empty key": (
        BASE + "        key: ${EMPTY}\n",
        "holdfast.yaml:7:14: models[0].replicas[1].key: must be printable ASCII without spaces, and not empty. "
        'Write key: "${NAME}" and set NAME.',
    ),
    "same url": (
        BASE.replace("http://127.0.0.1:8002", "HTTP://127.0.0.1:8001/"),
        "holdfast.yaml:5:14: models[0].replicas[1].url: the same replica url twice. "
        "models[0].replicas[0] has it. Each server is one replica: remove one.",
    ),
    "same url by default port": (
        BASE.replace(":8001", "").replace(":8002", ":80"),
        "holdfast.yaml:5:14: models[0].replicas[1].url: the same replica url twice. "
        "models[0].replicas[0] has it. Each server is one replica: remove one.",
    ),
    "same name": (
        BASE + "        name: 127.0.0.1:8001\n",
        "holdfast.yaml:7:15: models[0].replicas[1].name: the same replica name twice. "
        "models[0].replicas[0] has it. Give one of them another name.",
    ),
    "same model": (
        BASE + "  - name: tiny\n    replicas: [{url: 'http://localhost:1'}]\n",
        "holdfast.yaml:7:11: models[1].name: the same model twice. "
        "models[0] has it: put all replicas of a model under one entry.",
    ),
    "no active": (
        BASE.replace("8001\n", "8001\n        role: standby\n"),
        "holdfast.yaml:4:7: models[0].replicas: no active replica. Give one of them role: active.",
    ),
    "beyond loopback": (
        BASE.replace("127.0.0.1:8002", "10.0.0.2:8002"),
        "holdfast.yaml:5:9: models[0].replicas[1]: vLLM servers beyond loopback need an upstream key. Start vLLM with "
        '--api-key; write key: "${UPSTREAM_KEY}" (for --upstream: set HOLDFAST_UPSTREAM_KEY).',
    ),
    "tokenizer": (
        BASE + "    tokenizer: ./nope\n",
        "holdfast.yaml:7:16: models[0].tokenizer: no tokenizer there. "
        "Name a tokenizer.json or a directory that holds one, or leave it out.",
    ),
    "ports": (
        BASE + "listen: {port: 8081}\n",
        "holdfast.yaml:7:9: listen.admin_port: the admin port is the public port. Give it another, such as 8081.",
    ),
    "open admin": (
        BASE + "listen: {admin_host: 0.0.0.0}\n",
        "holdfast.yaml:7:22: listen.admin_host: an admin port beyond loopback needs a key. "
        "Add admin_key_sha256, or listen on 127.0.0.1.",
    ),
    "sha256": (
        BASE + "admin_key_sha256: hf-secret\n",
        "holdfast.yaml:7:19: admin_key_sha256: must be 64 hex digits. "
        'Write the output of: printf %s "$SECRET" | sha256sum',
    ),
    "budget": (
        BASE + f"keys: [{{user: a, sha256: {SHA}, tokens: 5/dya}}]\n",
        'holdfast.yaml:7:100: keys[0].tokens: unknown budget window. Did you mean "day"?',
    ),
    "leases": (
        BASE + "limits: {lease_tokens: 8}\n",
        "holdfast.yaml:7:9: limits.lease_low_tokens: above lease_tokens. Write at most 8, or raise lease_tokens.",
    ),
    "nothing to serve": (
        "data: x\n",
        "holdfast.yaml:1:1: no models and no upstreams. Add models: with their replicas, or upstreams: with URLs.",
    ),
    "both": (
        BASE + "upstreams: [{url: 'http://localhost:1'}]\n",
        "holdfast.yaml:7:12: upstreams: both models and upstreams are given. "
        "Keep models, or keep upstreams to have the models asked for.",
    ),
    "same field": (
        BASE + "data: a\ndata: b\n",
        "holdfast.yaml:8:1: data: the same field twice. Line 7 has it already: keep one.",
    ),
    "syntax": (
        "a: [1\nb: 2\n",
        "holdfast.yaml:2:2: not valid YAML: expected ',' or ']', but got ':'. "
        "Check indentation, quotes and colons on this line and the one above.",
    ),
    "bare variable in braces": (
        "a: {key: ${K}}\n",
        "holdfast.yaml:1:11: not valid YAML: expected ',' or '}', but got '{'. "
        'Inside {...} a variable needs quotes: "${NAME}".',
    ),
    "odd escape": (
        'a: "\\UFFFFFFFF"\n',
        "holdfast.yaml:1:1: not valid YAML: not readable. "
        "Check indentation, quotes and colons on this line and the one above.",
    ),
    "empty": (
        "# nothing\n",
        "holdfast.yaml:1:1: the file is empty. Start with the lines of docs/holdfast.example.yaml.",
    ),
    "list": (
        "\n- a\n",
        'holdfast.yaml:2:1: must be a mapping of "name: value" lines. '
        "Start with the lines of docs/holdfast.example.yaml.",
    ),
    "not text": (b"a: 1\nb: \xff\n", "holdfast.yaml:2:4: not UTF-8 text. Save the file as UTF-8."),
    "control character": (
        "a: 1\nb: \x00\n",
        "holdfast.yaml:2:4: a character that YAML does not allow. Save the file as plain UTF-8 text.",
    ),
    "bomb": (
        "a: &a [x, x]\nb: [*a, *a]\n",
        "holdfast.yaml:1:4: anchors and aliases (& and *) are not allowed. Write the value out.",
    ),
    "tag": (
        "a: !!python/object:os.system x\n",
        "holdfast.yaml:1:4: tags (!) are not allowed. Write the plain value; quote it if it starts with !.",
    ),
    "deep": (
        "a: " + "[" * 5000,
        "holdfast.yaml:1:19: nested too deeply or too long. See docs/holdfast.example.yaml for the shape.",
    ),
    "second document": (
        "a: 1\n---\nb: 1\n",
        'holdfast.yaml:2:1: a second document starts here. Remove the line "---".',
    ),
    "name not text": ("? [a]\n: 1\n", 'holdfast.yaml:1:3: a field\'s name must be plain text. Write "name: value".'),
    "too long": (
        "#" * (FILE_BYTES_MAX + 1),
        f"holdfast.yaml:1:1: longer than {FILE_BYTES_MAX} bytes. Make keys with: holdfast keys create.",
    ),
}


@pytest.mark.parametrize(("text", "error"), ONE_ERROR.values(), ids=ONE_ERROR)
def test_one_slip_gives_one_error(tmp_path: Path, text: str | bytes, error: str):
    """Each kind of slip gives exactly one line: its place, its field, what is wrong, what to write."""
    assert errors_of(tmp_path, text, EMPTY="") == [error]


def test_missing_file_is_one_error(tmp_path: Path):
    """A file that is not there is an error like any other."""
    with pytest.raises(ConfigErrors, match="cannot be read: No such file or directory"):
        load(tmp_path / "none.yaml")


def test_all_errors_at_once_in_order_of_lines(tmp_path: Path):
    """Wrong fields, unset variables, duplicates and contradictions are reported together."""
    text = (
        "listen: {port: 8081, hots: x}\n"
        + BASE.replace("role: standby", "key: ${NOPE}").replace("tiny", "''")
        + "data: a\ndata: b\n"
    )

    fields = [error.split(": ")[1] for error in errors_of(tmp_path, text)]

    assert fields == ["listen.hots", "models[0].name", "models[0].replicas[1].key", "data"]


def test_contradictions_are_found_beside_wrong_fields(tmp_path: Path):
    """A wrong field in one replica does not hide that two others are the same."""
    text = BASE + "      - {url: 'http://127.0.0.1:8001'}\n      - {url: ftp}\n"

    assert [error.split(": ")[1] for error in errors_of(tmp_path, text)] == [
        "models[0].replicas[2].url",
        "models[0].replicas[3].url",
    ]


def test_an_unset_variable_is_its_only_error(tmp_path: Path):
    """A value that is not there is not called equal to another, nor a key that is not there missing."""
    models = "models:\n" + BASE.removeprefix("models:\n").replace("tiny", "${NOPE}") * 2
    text = models.replace("8001", "8003", 1).replace("8002", "8004", 1)

    named = errors_of(tmp_path, text)
    admin = errors_of(tmp_path, BASE + "listen: {admin_host: 0.0.0.0}\nadmin_key_sha256: ${NOPE}\n")

    assert len(named) == 2
    assert len(admin) == 1
    assert all("variable NOPE is not set" in error for error in named + admin)


def test_errors_hold_no_values(tmp_path: Path):
    """A secret in the wrong place is not repeated in the error."""
    text = BASE.replace("role: standby", "key: 'hush hush'") + "admin_key_sha256: hush\nbudget_status: hush\n"

    assert "hush" not in "".join(errors_of(tmp_path, text))


def test_terminal_escapes_in_names_are_not_printed(tmp_path: Path):
    """What a terminal would act on is shown, not sent."""
    assert "\x1b" not in errors_of(tmp_path, BASE + '"\\e[31m": 1\n')[0]


def test_variables(tmp_path: Path):
    """Variables stand for text, numbers and truths; a default serves where one is unset or empty."""
    text = BASE + "listen: {port: '${PORT}', host: '${HOST:-::1}'}\nshare_prefix_cache: ${SHARE:-true}\n"

    config = loaded(tmp_path, text, PORT="9000", HOST="")

    assert (config.listen.port, config.listen.host, config.share_prefix_cache) == (9000, "::1", True)


def test_variables_are_not_expanded_twice(tmp_path: Path):
    """What comes from the environment is a value, not a template."""
    config = loaded(tmp_path, BASE + "        key: ${A}\n", A="${B}")

    assert config.replicas[1].key is not None
    assert config.replicas[1].key.get_secret_value() == "${B}"


def test_paths_are_relative_to_the_file(tmp_path: Path):
    """Data and tokenizer are found from wherever the gateway is started."""
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")

    config = loaded(tmp_path, BASE + "    tokenizer: tok\n")

    assert config.data == tmp_path / "holdfast-data"
    assert config.models[0].tokenizer == tmp_path / "tok" / "tokenizer.json"


def test_words_that_yaml_would_convert_stay_words(tmp_path: Path):
    """A user named `no` and a model named `1.10` keep their names."""
    config = loaded(tmp_path, BASE.replace("tiny", "1.10") + f"keys: [{{user: no, sha256: {SHA}}}]\nupstreams:\n")

    assert (config.models[0].name, config.keys[0].user, config.upstreams) == ("1.10", "no", ())


def test_replica_helpers():
    """A replica knows its normalised root, host, port, and whether it is spoken to over TLS."""
    config = from_upstreams(["HTTPS://Example.org:443/", "http://[::1]:8000"], key="k")

    assert [(r.url, r.host, r.port, r.tls, r.name) for r in config.replicas] == [
        ("https://example.org", "example.org", 443, True, "replica-50d7a905"),
        ("http://[::1]:8000", "::1", 8000, False, "[::1]:8000"),
    ]
    assert {replica.role for replica in config.upstreams} == {"active"}


def test_command_line_errors_have_no_line():
    """What was typed is named by option position, all at once."""
    with pytest.raises(ConfigErrors) as caught:
        from_upstreams(["http://10.0.0.1", "x"], listen={"port": 8081})

    assert [error.field for error in caught.value.errors] == ["upstreams[1].url", "upstreams[0]", "listen.admin_port"]
    assert str(caught.value).startswith("command line: upstreams[1].url: must start")


def test_command_line_overrides_are_checked(tmp_path: Path):
    """--port and --data win over the file, and may not contradict it."""
    config = overridden(from_upstreams(["http://localhost:1"]), data=tmp_path, listen={"port": 0})

    assert (config.data, config.listen.port, config.listen.admin_port) == (tmp_path, 0, 8081)
    with pytest.raises(ConfigErrors, match="the admin port is the public port"):
        overridden(config, listen={"port": 8081})


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("100000", Limit(100_000)),
        ("100_000/day", Limit(100_000, Window.DAY)),
        ("100k/Hour", Limit(100_000, Window.HOUR)),
        (" 2M / month ", Limit(2_000_000, Window.MONTH)),
        ("1/minute", Limit(1, Window.MINUTE)),
        ("7/total", Limit(7, Window.TOTAL)),
        ("5.00 USD/month", Limit(5_000_000, Window.MONTH, Unit.MONEY)),
        ("$0.000001", Limit(1, Window.TOTAL, Unit.MONEY)),
        ("20k output tokens / hour", Limit(20_000, Window.HOUR, Unit.OUTPUT)),
        ("3 input/day", Limit(3, Window.DAY, Unit.INPUT)),
        ("10 tokens", Limit(10)),
    ],
)
def test_budgets(text: str, limit: Limit):
    """A budget is tokens, perhaps in thousands or millions or of one kind, or dollars, per window."""
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "1.5k",
        "day",
        "1/",
        "1/year",
        "1g",
        "9" * 30,
        "1/day/day",
        "_1",
        "٣",
        "1k USD",
        "$",
        "$1 USD",
        "0.0000001 USD",
        "1.0",
        "5 beans",
        "5 output/fortnight",
    ],
)
def test_not_budgets(text: str):
    """What is no budget is refused, with a hint."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - a pydantic error by type, tested for its hint
        parse_limit(text)
    assert caught.value.context["hint"]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("60 requests/minute", (Counted.REQUESTS, Rate(60, 60, 60))),
        ("100k tokens / hour", (Counted.TOKENS, Rate(100_000, 3600, 100_000))),
        ("10 Requests/second burst 20", (Counted.REQUESTS, Rate(10, 1, 20))),
        ("50 tokens/second per stream", (Counted.OF_STREAM, Rate(50, 1, 50))),
        ("50 tokens/second per stream burst 99", (Counted.OF_STREAM, Rate(50, 1, 99))),
    ],
)
def test_rates(text: str, rate: tuple[Counted, Rate]):
    """Requests or tokens per time; the burst is a period's worth where none is said."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["60", "60/minute", "0 requests/minute", "5 requests/year", "1.5 requests/second", "2000M tokens/day",
             "5 requests/second burst 0", "5 requests/second burst", "5 requests/second per stream",
             "5 tokens/second per"],
)  # fmt: skip
def test_not_rates(text: str):
    """What is no rate is refused, with a hint."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - a pydantic error by type, tested for its hint
        parse_rate(text)
    assert caught.value.context["hint"]


def test_loopback():
    """Only what cannot be reached from elsewhere is loopback."""
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example")))


ODD = ("{", "[", ": ", "- ", "\n", "&a ", "*a", "!", "${", "\t", "null", '"\\ud800"', "%YAML 9\n")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_text_loads_or_gives_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """However the example is mangled, the loader returns a Config or raises ConfigErrors with lines."""
    text = EXAMPLE.read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 40))
        text = text[:at] + data.draw(st.sampled_from(ODD) | st.text(max_size=8)) + text[at + cut :]
    path = tmp_path_factory.getbasetemp() / "mangled.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    errors = ConfigErrors([])
    try:
        load(path, {"UPSTREAM_KEY": "k", "ALICE_SHA256": SHA})
    except ConfigErrors as caught:
        errors = caught
    assert all(error.line > 0 and error.message for error in errors.errors)
    str(errors).encode()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(blob=st.binary(max_size=200))
def test_any_bytes_load_or_give_errors(tmp_path_factory: pytest.TempPathFactory, blob: bytes):
    """Binary garbage gives an error, never a traceback."""
    path = tmp_path_factory.getbasetemp() / "garbage.yaml"
    path.write_bytes(blob)
    with pytest.raises(ConfigErrors):
        load(path, {})


def test_a_list_of_wrong_items_is_not_called_empty(tmp_path: Path):
    """Where every replica has a fault, the faults are named, and not that there were no replicas."""
    file = tmp_path / "h.yaml"
    file.write_text('models:\n  - name: m\n    replicas:\n      - {url: "http://10.0.0.5:8000", key: "${NOT_SET}"}\n')

    with pytest.raises(ConfigErrors) as caught:
        load(file, {})

    assert [error.field for error in caught.value.errors] == ["models[0].replicas[0].key"]


# ---------------------------------------------------------------- where budgets are kept


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("redis://127.0.0.1", VaultUrl((("127.0.0.1", 6379),), False, None, None, 0)),
        ("rediss://Cache.example:6380/3", VaultUrl((("cache.example", 6380),), True, None, None, 3)),
        ("redis://bob:p%40ss/w@[::1]:7000/", VaultUrl((("::1", 7000),), False, "bob", "p@ss/w", 0)),
        ("redis://:${SECRET}@a", VaultUrl((("a", 6379),), False, None, "s3:cr@t", 0)),
        ("redis+cluster://a:1,b:2,[fe80::1]", VaultUrl((("a", 1), ("b", 2), ("fe80::1", 6379)), False, None, None, 0)),
        ("rediss+cluster://:x@a:1", VaultUrl((("a", 1),), True, None, "x", 0)),
    ],
)
def test_the_url_of_a_vault_is_read(tmp_path: Path, url: str, means: VaultUrl):
    """Each part of it; and a password from the environment shows nowhere."""
    config = loaded(tmp_path, BASE + f'ledger: {{url: "{url}"}}\n', SECRET="s3:cr@t")

    assert config.ledger.server == means
    assert "s3:cr@t" not in repr(config)


@pytest.mark.parametrize(
    ("text", "after_s"),
    [("", 30 * 86_400.0), (", write_off_after: 1h", 3600.0), (", write_off_after: 36 h", 129_600.0)]
    + [(f", write_off_after: {text}", None) for text in ("never", "0", "Never")],
)
def test_how_long_a_gateway_may_be_away(tmp_path: Path, text: str, after_s: float | None):
    """Thirty days, where nothing is said."""
    config = loaded(tmp_path, BASE + f"ledger: {{url: 'redis://a'{text}}}\n")

    assert config.ledger.write_off_after == after_s
    assert overridden(config, listen={"port": 0}).ledger == config.ledger


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("url: http://:sesame@a", "ledger.url: not the URL of a Redis server. Write"),
        ("url: 'redis://:sesame@'", "ledger.url: not the URL"),
        ("url: 'redis://:sesame@a b'", "ledger.url: not a host and port"),
        ("url: 'redis://a:0'", "ledger.url: not a host and port"),
        ("url: 'redis://a:65536'", "ledger.url: not a host and port"),
        ("url: 'redis://a,b'", "ledger.url: several hosts are a cluster"),
        ("url: 'redis+cluster://a/1'", "ledger.url: a cluster has no numbered databases"),
        ("url: 'redis://a', replicas: -1", "ledger.replicas: must be at least 0"),
        ("url: 'redis://a', when_down: lease", "ledger.when_down: must be refuse or leased. Did you mean"),
        ("url: 'redis://a', leased_scopes: [acme]", "ledger.leased_scopes[0]: not a scope. Write org:NAME"),
        ("url: 'redis://a', when_down: leased, leased_scopes: ['org:a']", "ledger.leased_scopes: when_down: leased is"),
        ("url: 'redis://a', write_off_after: soon", "ledger.write_off_after: not a time. Write hours or days"),
        ("url: 'redis://a', write_off_after: 59", "ledger.write_off_after: not a time. Write hours or days"),
        ("url: 'redis://a', write_off_after: 7.5", "ledger.write_off_after: "),
        ("url: 'redis://a', write_off_after: 0h", "ledger.write_off_after: from an hour to a year"),
        ("url: 'redis://a', write_off_after: 366d", "ledger.write_off_after: from an hour to a year"),
        ("url: 'redis://a', one_off: perhaps", "ledger.one_off: must be true or false"),
        ("write_off_after: 7d", "ledger.write_off_after: means nothing without a server"),
        ("one_off: true", "ledger.one_off: means nothing without a server"),
        ("replicas: 1", "ledger.replicas: means nothing without a server"),
        ("when_down: leased", "ledger.when_down: means nothing without a server"),
    ],
)
def test_a_ledger_that_cannot_be_is_told_in_its_place(tmp_path: Path, text: str, says: str):
    """Without the password that may be in it."""
    (error,) = errors_of(tmp_path, BASE + f"ledger: {{{text}}}\n")

    assert error.startswith("holdfast.yaml:7:")
    assert says in error
    assert "sesame" not in error


def test_streams_are_bound_to_fingerprints_only_where_somebody_asks_for_them(tmp_path: Path):
    """Else no stream would ever go on."""
    text = BASE + "integrity: {same_fingerprint: true, ask_every_s: 0}\n"

    assert errors_of(tmp_path, text) == [
        "holdfast.yaml:7:31: integrity.same_fingerprint: nobody asks for fingerprints while ask_every_s is 0."
        " Write ask_every_s: 5, or remove it."
    ]
    (tmp_path / "holdfast.yaml").write_text(text.replace("s: 0", "s: 5"))
    assert load(tmp_path / "holdfast.yaml", {}).integrity.same_fingerprint


def test_a_vault_is_opened_where_the_configuration_says(tmp_path: Path):
    """The server, with all that its URL says, or a file of this machine."""
    redis = open_vault(loaded(tmp_path, BASE + 'ledger: {url: "rediss://u:p@a:7/2", replicas: 2}\n'))
    embedded = open_vault(loaded(tmp_path, BASE))

    assert isinstance(redis, RedisVault)
    assert (list(redis._servers), redis._login, redis._replicas) == ([("a", 7)], Login(True, "u", "p", 2), 2)
    assert isinstance(embedded, SqliteVault)
    assert not (tmp_path / "holdfast-data").exists()


def test_a_breaker_in_one_word_has_the_presets(tmp_path):
    """And one that is spelled out has what it says, the presets where it says nothing."""
    config = loaded(
        tmp_path,
        BASE
        + "breaker: on\n"
        + "budgets:\n"
        + "  - {org: a, breaker: off}\n"
        + "  - {org: b, breaker: {day: {open: 6x over 10m}, answer_tokens: 99}}\n",
    )
    plans = [one.plan for one in (config.breaker, *(budget.breaker for budget in config.budgets)) if one is not None]

    assert plans[:2] == [Plan(), OFF]
    assert plans[2] == Plan((Tier(600, 6, State.OPEN), DAY[1]), MONTH, 99)


def test_alerts_have_shares_and_a_webhook(tmp_path):
    """The secret is not printed; unsaid, the shares are three."""
    secret = "whsec_" + "A" * 40
    config = loaded(tmp_path, BASE + "alerts: {webhook: {url: https://a.example/x?y=1, secret: '${S}'}}\n", S=secret)

    assert config.alerts is not None
    assert config.alerts.at == (0.5, 0.8, 1.0)
    assert config.alerts.webhook is not None
    assert config.alerts.webhook.secret.get_secret_value() == secret
    assert "AAAA" not in repr(config)
    assert loaded(tmp_path, BASE + "alerts: {at: [99.5%]}\n").alerts.at == (0.995,)
