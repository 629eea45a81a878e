"""Who may read pages, and what becomes of a store that is damaged, another's, or too large."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.vllm_plugin.store.pages import all_right, key_of, page
from tests.vllm_plugin.store.processes import Mortal
from vllm_plugin.store import StoreRefused, open_store
from vllm_plugin.store.lmdb import remove_files

MIB = 2**20


def filled(url: str) -> None:
    store = open_store(url)
    store.put([page(number) for number in range(20)])
    store.close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_its_owner_may_read_it(place, url, umask):
    """Whatever the umask."""
    before = os.umask(umask)
    try:
        filled(url)
    finally:
        os.umask(before)

    assert mode(place) == 0o700
    assert {file.name: mode(file) for file in place.iterdir()} == {
        "data.mdb": 0o600, "lock.mdb": 0o600, "holdfast.pages": 0o600
    }  # fmt: skip


@pytest.mark.parametrize("name", [".", "data.mdb", "lock.mdb", "holdfast.pages"])
def test_what_others_may_use_is_refused(place, url, name):
    """With the line to run; it may have been read, or written, by anybody."""
    filled(url)
    (place / name).chmod(0o770 if name == "." else 0o640)

    with pytest.raises(StoreRefused, match=r"chmod [67]00 ") as refused:
        open_store(url)

    subprocess.run(str(refused.value).partition("Run: ")[2], shell=True, check=True)
    open_store(url).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", [".", "data.mdb"])
def test_what_belongs_to_somebody_else_is_refused(place, url, name):
    """Whoever made it first could still open it."""
    filled(url)
    os.chown(place / name, 12345, 12345)

    with pytest.raises(StoreRefused, match="belongs to user 12345"):
        open_store(url)


def test_a_link_is_refused(place, url, tmp_path):
    """It is followed nowhere: /dev/shm is everybody's."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreRefused, match="link"):
        open_store(url)


def test_a_linked_file_is_refused(place, url, tmp_path):
    filled(url)
    shutil.move(place / "data.mdb", tmp_path / "data.mdb")
    (place / "data.mdb").symlink_to(tmp_path / "data.mdb")

    with pytest.raises(StoreRefused, match="is no file"):
        open_store(url)


def test_another_programs_lmdb_is_refused(place, url):
    """Nothing of it is touched."""
    filled(url)
    (place / "holdfast.pages").unlink()
    before = (place / "data.mdb").read_bytes()

    with pytest.raises(StoreRefused, match="not made by Holdfast"):
        open_store(url)

    assert (place / "data.mdb").read_bytes() == before


def garbage(data: bytearray) -> None:
    data[:] = os.urandom(len(data))


def truncated(data: bytearray) -> None:
    del data[len(data) // 2 :]


def grown(data: bytearray) -> None:
    data.extend(bytes(4096))


def of_32_bits(data: bytearray) -> None:
    """A page's head has 12 bytes there, and sizes 4."""
    for start in (0, 4096):
        data[start : start + 4096] = (data[start : start + 8] + data[start + 12 : start + 4096]).ljust(4096, b"\0")


def of_the_other_endian(data: bytearray) -> None:
    for start in (0, 4096):
        data[start + 16 : start + 24] = struct.pack(">II", *struct.unpack("<II", data[start + 16 : start + 24]))


def a_tree_that_points_into_a_page(data: bytearray) -> None:
    """The heads are right; what they point to is not. LMDB would follow it."""
    for start in range(2 * 4096, len(data), 4096):
        if data[start + 10] & 0x03 and not data[start + 10] & 0x04:  # a branch, or a leaf
            data[start + 16 : start + 4096] = os.urandom(4080)


DAMAGES = [garbage, truncated, grown, of_32_bits, of_the_other_endian, a_tree_that_points_into_a_page]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_put_aside(place, url, damage, caplog):
    """It is told, and kept; the engine starts with an empty one."""
    filled(url)
    data = bytearray((place / "data.mdb").read_bytes())
    damage(data)
    (place / "data.mdb").write_bytes(data)

    store = open_store(url)

    assert store.stats().aside != ""
    assert "put aside: rm " in caplog.text
    assert (place / "damaged.mdb").read_bytes() == data
    assert mode(place / "damaged.mdb") == 0o600
    assert store.stats().pages == 0
    assert store.put([page(1)])
    assert all_right(store, [1]) == [True]
    store.close()
    open_store(url).close()
    assert remove_files(url)
    assert list(place.iterdir()) == []


def test_a_store_of_another_version_is_put_aside(place, url):
    filled(url)
    (place / "holdfast.pages").write_text("Holdfast pages, format 9, size 16777216\n")

    store = open_store(url)

    assert "version" in store.stats().aside
    assert store.stats().pages == 0
    store.close()


def test_a_damaged_store_that_is_in_use_is_refused(place, url):
    """It cannot be moved away under those who use it."""
    user = Mortal(url, what="hold")
    user.says("ready")
    (place / "holdfast.pages").write_text("nonsense")

    with pytest.raises(StoreRefused, match="stop them"):
        open_store(url)

    user.kill()
    open_store(url).close()


def test_a_damaged_entry_reads_as_absent_and_is_removed(place, url):
    """Any byte of it; also where another one finds it at its start, with a payload that nothing points to."""
    store = open_store(url)
    store.put([page(1), page(2)])
    with store._tables.writing() as txn:
        entry = bytearray(txn.get(key_of(1), None, store._tables.manifests))
        entry[20] ^= 1
        txn.put(key_of(1), bytes(entry), db=store._tables.manifests)

    assert store.held([key_of(1)]) == 0
    assert all_right(store, [1, 2]) == [False, True]
    store.put([])
    assert (store.stats().damaged, store.stats().pages, store.stats().failed) == (1, 1, 0)
    assert page(1).payload in (place / "data.mdb").read_bytes()
    store.close()

    store = open_store(url)
    store.put([])
    assert page(1).payload not in (place / "data.mdb").read_bytes()
    store.close()


def test_the_maker_says_how_large_it_is(place, url):
    """Whoever comes later takes it as it is: a smaller map would cut it off under the others."""
    filled(url)

    store = open_store(f"lmdb://{place}?size=64MiB")

    assert store.stats().size_bytes == 16 * MIB
    assert (place / "data.mdb").stat().st_size == 16 * MIB
    store.close()


@pytest.mark.parametrize("size", ["8MiB", "64MiB"])
def test_who_joins_takes_the_size_that_others_use(place, url, size):
    """LMDB would cut the file to what it is told, and who uses it would die of that."""
    user = Mortal(url, what="wait")
    user.says("ready")

    store = open_store(f"lmdb://{place}?size={size}")

    assert store.stats().size_bytes == 16 * MIB
    assert (place / "data.mdb").stat().st_size == 16 * MIB
    store.close()
    user.kill()


@pytest.fixture
def small_memory(tmp_path):
    """A memory file system of 24 MiB."""
    path = tmp_path / "memory"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", path]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_too_little_memory_is_refused_at_the_start(small_memory):
    """Not by a signal in the middle of a put; what to do is told, and nothing is left there."""
    with pytest.raises(StoreRefused, match=r"32 MiB for pages are not to be had .* 2[34] MiB are free.*size=11MiB"):
        open_store(f"lmdb://{small_memory}/store?size=32MiB")

    assert list((small_memory / "store").iterdir()) == []
    store = open_store(f"lmdb://{small_memory}/store?size=11MiB")
    assert store.put([page(1)])
    store.close()


def test_no_memory_at_all_is_refused_at_the_start(small_memory):
    with (small_memory / "other").open("wb") as other:
        os.posix_fallocate(other.fileno(), 0, os.statvfs(small_memory).f_bfree * 4096)

    with pytest.raises(StoreRefused, match=f"{small_memory}/store.*No space left"):
        open_store(f"lmdb://{small_memory}/store?size=8MiB")


def test_a_damaged_one_is_removed_where_there_is_no_room_for_both(small_memory, caplog):
    url = f"lmdb://{small_memory}/store?size=16MiB"
    filled(url)
    with (small_memory / "store" / "data.mdb").open("r+b") as data:
        data.write(os.urandom(3 * 4096))

    store = open_store(url)

    assert "want of room" in caplog.text
    assert store.put([page(1)])
    assert not (small_memory / "store" / "damaged.mdb").exists()
    store.close()


def test_files_in_use_are_not_removed(place, url):
    """Those who use them would go on in memory that nobody finds."""
    user = Mortal(url, what="hold")
    user.says("ready")

    assert not remove_files(url)
    assert (place / "data.mdb").exists()

    user.kill()
    assert remove_files(url)


def test_looking_makes_nothing(place, url):
    with pytest.raises(StoreRefused, match="no pages in"):
        open_store(url, make=False)
    with pytest.raises(StoreRefused, match="no pages in"):
        remove_files(url)

    assert not place.exists()


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(StoreRefused, match="file"):
        open_store(f"lmdb://{tmp_path}/file/store?size=8MiB")


def test_what_was_removed_can_be_made_again(place, url):
    filled(url)
    shutil.rmtree(place)

    filled(url)

    assert place.exists()
