"""What the documents say is what the code takes. That it works is shown by real/test_installed.py."""

import tomllib

import pytest

from tests.readme import ROOT, commands, transfers
from vllm_plugin.refusals import Facts, refusals, refusals_of_policy
from vllm_plugin.register import NAME
from vllm_plugin.settings import Settings

TRANSFERS = transfers()
INSIDE = "Inside vLLM: intact pages"


def test_there_is_something_to_paste():
    """In the README and on the plugin's page."""
    assert {"README.md:0", "pages.md:0"} <= set(TRANSFERS)


@pytest.mark.parametrize("place", sorted(TRANSFERS))
def test_every_configuration_that_is_shown_is_taken(place):
    """By its name, alone or beside others, with a policy that is not refused, and settings that there are."""
    shown = TRANSFERS[place]
    members = shown["kv_connector_extra_config"].get("connectors", [shown])
    (ours,) = [one for one in members if one["kv_connector"] == NAME]
    settings = Settings.of(ours.get("kv_connector_extra_config", {}))

    assert {one["kv_role"] for one in (shown, *members)} == {"kv_both"}
    assert refusals(Facts(), settings.unprotected, settings.store) == []
    assert refusals_of_policy(shown["kv_load_failure_policy"]) == []


def test_the_extra_that_is_installed_is_there_and_brings_no_engine():
    """vLLM is a peer: neither it nor torch comes with this."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["plugin"]]

    assert "pip install '.[plugin]'\n" in commands(INSIDE)
    assert [name for name in named if name.startswith(("vllm", "torch", "triton", "numba", "nvidia", "lmdb"))] == [
        "lmdb>=3"
    ]
