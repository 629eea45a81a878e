"""Realistic LLM traffic for locust:  locust -f loadtests/locustfile.py --host http://127.0.0.1:8080 [ChatSessions ...]

With --rate, clients come when they come (an open loop); without, as many as `-u` says, each anew when it is done.
docs/load.md has the scenarios and all options.
"""

from locust import events, task

from loadtests.traffic import options, run
from loadtests.traffic.user import StreamUser

events.init_command_line_parser.add_listener(options.add)
events.init.add_listener(run.attach)


class Scenario(StreamUser):
    """One user of a closed loop; of an open one, those who are due come without it."""

    abstract = True

    @task
    def client(self) -> None:
        """One client, from its first request to its last."""
        if self.open_loop:
            self.idle()
        else:
            self.serve(self.plan.client(self.next_due()), None)


class ChatSessions(Scenario):
    """Conversations of several turns; a few system prompts that all share."""

    scenario, weight = "chat", 6


class Agents(Scenario):
    """Loops with tools: long prompts that grow, short answers."""

    scenario, weight = "agents", 3


class Batches(Scenario):
    """Floods of completions, all at once."""

    scenario, weight = "batch", 1


class Runaways(Scenario):
    """Loops that have lost their end: for budgets to stop."""

    scenario, weight = "runaway", 1


class Leavers(Scenario):
    """Clients that hang up."""

    scenario, weight = "leavers", 2


class LongContexts(Scenario):
    """Documents that fill most of the model's window."""

    scenario, weight = "long", 1


class Tenants(Scenario):
    """Mixed tenants: each with a key and a habit of its own."""

    scenario, weight = "tenants", 1


class Replay(Scenario):
    """What a trace says, when it says so."""

    scenario, weight = "replay", 1
