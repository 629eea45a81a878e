"""Which store an address means."""

from urllib.parse import urlsplit

from vllm_plugin.store.contract import PageStore, StoreRefused


def open_store(url: str, *, populate: bool = True, make: bool = True) -> PageStore:
    """Open a store: `lmdb:///dev/shm/holdfast?size=8GiB&retention=1h` of one host, `redis://...` of many.

    rediss:// is the latter by TLS.

    populate: have all of it at hand before it is needed, in a thread; for whoever writes. make: also where there is
    none yet; on Redis, also where no server answers. Raises StoreRefused.
    """
    scheme = urlsplit(url).scheme
    if scheme == "lmdb":
        from vllm_plugin.store.lmdb import LmdbStore

        return LmdbStore.open(url, populate=populate, make=make)
    if scheme in ("redis", "rediss"):
        from vllm_plugin.store.redis_store import RedisStore

        return RedisStore.open(url, make=make)
    raise StoreRefused(f"{url}: a store's address begins with lmdb://, such as lmdb:///dev/shm/holdfast, redis:// or rediss://")
