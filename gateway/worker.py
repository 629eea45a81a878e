"""One of many workers on one machine, each a gateway of its own: what they share, and what is divided among them."""

from dataclasses import dataclass
from typing import TypeVar

from gateway.books.directories import directory
from gateway.config import Bounded, Config
from guards.place import MANY

B = TypeVar("B", bound=Bounded)


@dataclass(frozen=True, slots=True)
class Worker:
    """The how-manieth it is, of how many; whole: the configuration of all of them."""

    number: int
    count: int
    whole: Config

    @property
    def config(self) -> Config:
        """Its own: a directory, an admin port and its part of what all may do together.

        Budgets are not divided: workers lease of them what they need, from the vault that they share.
        """
        whole, listen, limits = self.whole, self.whole.listen, self.whole.limits
        parts = {
            "requests_in_flight": self._part(limits.requests_in_flight),
            "client_connections": self._part(limits.client_connections),
            "hedges_per_s": limits.hedges_per_s / self.count,
            "hedges_burst": self._part(limits.hedges_burst),
        }
        said = whole.admission
        admission = {name: self._permits(getattr(said, name)) for name in ("per_model", "per_agent")}
        admission["per_replica"] = self._part(said.per_replica)
        if said.waiting is not None:
            admission["waiting"] = self._part(said.waiting)
        retries = whole.retries.model_copy(update={"per_s": whole.retries.per_s / self.count})
        warming = whole.warming
        loaded = {"at_once": self._part(warming.at_once), "per_replica": self._part(warming.per_replica)}
        tiers = (one.model_copy(update={"permits": self._permits(one.permits)}) for one in whole.tiers)
        admin_port = listen.admin_port + self.number if listen.admin_port else 0
        return whole.model_copy(
            update={
                "data": directory(whole.data, self.number),
                "listen": listen.model_copy(update={"admin_port": admin_port}),
                "limits": limits.model_copy(update=parts),
                "admission": whole.admission.model_copy(update=admission),
                "retries": retries,
                "warming": warming.model_copy(update=loaded),
                "tiers": tuple(tiers),
                "keys": tuple(self._slower(key) for key in whole.keys),
                "budgets": tuple(self._slower(budget) for budget in whole.budgets),
            }
        )

    def _part(self, amount: int) -> int:
        return max(1, amount // self.count)

    def _permits(self, amount: int) -> int:
        return amount if amount == MANY else self._part(amount)

    def _slower(self, one: B) -> B:
        rates = tuple((counted, rate.part(self.count)) for counted, rate in one.rates)
        return one.model_copy(update={"rates": rates})
