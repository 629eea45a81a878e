"""All scenarios, by name: a line each. Those that need more than is there say so when they are to be run."""

from importlib import import_module

from loadtests.gameday.scenario import Scenario

FAULTS = (
    "loadtests.gameday.faults.gateway_kill:GatewayKill",
    "loadtests.gameday.faults.disk_full:DiskFull",
    "loadtests.gameday.faults.redis_loss:RedisLoss",
    "loadtests.gameday.faults.network_cut:NetworkCut",
    "loadtests.gameday.faults.token_explosion:TokenExplosion",
    "loadtests.gameday.faults.runaway_cost:RunawayCost",
    "loadtests.gameday.faults.tenant_flood:TenantFlood",
    "loadtests.gameday.faults.poison_request:PoisonRequest",
    "loadtests.gameday.faults.page_corruption:PageCorruption",
    "loadtests.gameday.faults.engine_hang:EngineHang",
    "loadtests.gameday.faults.engine_kill:EngineKill",
    "loadtests.gameday.faults.model_change:ModelChange",
)  # fmt: skip


def all_scenarios() -> dict[str, type[Scenario]]:
    """In the order in which they are run: those last that leave a server to be started again."""
    found = {}
    for line in FAULTS:
        module, _, name = line.partition(":")
        scenario: type[Scenario] = getattr(import_module(module), name)
        assert scenario.name not in found, scenario.name
        found[scenario.name] = scenario
    return found
