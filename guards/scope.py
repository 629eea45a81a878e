"""Whose a limit is: an org, a team or a user within it, a key. Pure."""

from collections.abc import Callable

SESSION, AGENT, TURN = "session", "agent", "turn"
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~")
LEVELS_EACH = (SESSION, AGENT, TURN)  # of which a scope has many, each under the same limits


def scope(level: str, *names: str) -> str:
    """Name a scope. What parts names is escaped in them, so that no two scopes have the same name."""
    return f"{level}:" + "/".join(name.replace("%", "%25").replace("/", "%2F") for name in names)


def scopes(key_id: str, user: str, org: str | None, team: str | None) -> tuple[str, ...]:
    """Name the scopes that a key's requests are under, the widest first. Teams and users are their org's."""
    within = () if org is None else (org,)
    named = [scope("org", org)] if org is not None else []
    if team is not None:
        named.append(scope("team", *within, team))
    return (*named, scope("user", *within, user), scope("key", key_id))


def tag(org: str | None) -> str:
    """Name what all accounts of one request are kept under where many gateways share them.

    It is its org; all without one have the same, for a user may be in a team or not, and a team has many users. Made of
    letters, digits and «_.-~%:» alone, whatever the name.
    """
    if org is None:
        return "nobody"
    return "org:" + "".join(c if c in PLAIN else "".join(f"%{byte:02X}" for byte in c.encode()) for c in org)


def tag_of(at: str, org_of_key: Callable[[str], str | None]) -> str:
    """Under which tag a scope's accounts are. org_of_key: by its id; raises KeyError for one that is not known."""
    level, _, rest = at.partition(":")
    names = [unescaped(name) for name in rest.split("/")]
    if level in ("key", SESSION, AGENT):
        return tag(org_of_key(names[0]))
    return tag(names[0] if level == "org" or len(names) > 1 else None)


def unescaped(name: str) -> str:
    """A name as it was before `scope` took it in."""
    return name.replace("%2F", "/").replace("%25", "%")


def made_up(at: str) -> bool:
    """Whether clients name such a scope as they like: a session, an agent. There is no end of them."""
    return at.startswith((f"{SESSION}:", f"{AGENT}:"))


def each_of(level: str, of: str) -> str:
    """Name what limits of each session, agent or turn within a scope are kept under."""
    return f"each {level} of {of}"


def lineage(agent: str, depth_max: int) -> tuple[str, ...]:
    """An agent's ancestors by name, the root first, and itself: «planner/search» is a child of «planner».

    Raises ValueError where a name is empty, or the tree too deep.
    """
    names = tuple(agent.split("/"))
    if not all(names):
        raise ValueError("an agent is named like planner/search/reader, its parents first, and no name is empty")
    if len(names) > depth_max:
        raise ValueError(f"agents nest {depth_max} deep at most, and this one is {len(names)} deep")
    return names


def parsed(text: str) -> str:
    """Read a scope as people write it: org:acme, team:acme/search, user:alice. A «/» in a name is written %2F.

    Raises ValueError.
    """
    level, colon, rest = text.partition(":")
    names = [unescaped(name) for name in rest.split("/")]
    most = {"org": 1, "team": 2, "user": 2, "key": 1}.get(level, 0)
    if not colon or not 0 < len(names) <= most or not all(name.isprintable() and name.strip() for name in names):
        raise ValueError("write org:NAME, team:ORG/NAME, user:ORG/NAME, user:NAME or key:ID")
    return scope(level, *names)
