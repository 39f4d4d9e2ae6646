"""What is to be read, and what of it is done. The files of the folder of results say both, and nothing else does.

_mien/manifest.json       what was asked: model and options, which never change
_mien/sources-00000.json  the first shards, each a list of its sources; a later run that finds more adds a file
part-00000.parquet        what was read of a shard; its metadata holds a digest of the shard's list
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mien.batch.shard import Done, Shard
from mien.batch.sources import Item
from mien.batch.store import Store
from mien.errors import MienError

_FOLDER = "_mien"  # Parquet's readers look into no folder that begins so

_MANIFEST = f"{_FOLDER}/manifest.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to read, and how much of it is done.

    shards: all of them, in the order of their numbers.
    done: what is known of those that are done, by the names of their files.
    added: int, the number of sources that this run has added; each row of a table is one.
    version: of mien, as it was when the folder was begun.
    """

    shards: list[Shard]
    done: dict[str, Done]
    added: int
    version: str

    @property
    def todo(self) -> list[Shard]:
        return [shard for shard in self.shards if shard.name not in self.done]


def make_plan(store: Store, manifest: dict[str, Any], items: Sequence[Item], size: int, again: bool = False) -> Plan:
    """Begin a folder of results, or go on with what is there.

    store: the folder.
    manifest: what this run is of: "mien", "version", "model" (its "name" and "sha256") and "options".
    items: the sources, as `find_sources` gives them.
    size: int from 1 on, pictures of a new shard.
    again: whether shards with sources that could not be read count as not done; False.

    Sources that are in no shard yet make new ones. A shard stays as it was planned: where one of its sources has gone
    meanwhile, its row says so, or stays the row that it is.

    Raises MienError where there are no pictures, for a folder of something else or begun with another model or other
    options, for a damaged one, and for a table that has more or fewer rows than it had.
    """
    version = _agree(store, manifest)
    shards = _planned(store)
    new = _unknown(items, shards)
    if not shards and not new:
        raise MienError("no pictures there")
    if new:
        lists = _cut(new, size)
        name = f"{_FOLDER}/sources-{len(_lists(store)):05}.json"
        store.write(name, json.dumps({"first": len(shards), "shards": lists}).encode())
        shards = _planned(store)
    return Plan(shards, _done(store, shards, again), sum(map(_count, new)), version)


def _agree(store: Store, manifest: dict[str, Any]) -> str:
    """Refuse a folder of something else; in an empty one, say what it is of. The version of mien that began it."""
    text = store.read(_MANIFEST)
    if text is None:
        if others := sorted(store.names() - {_FOLDER}):
            raise MienError(f"{store.where}: {others[0]} is there, and no {_MANIFEST}: not a folder of mien batch's")
        store.write(_MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
        return manifest["version"]
    there = _json(store, _MANIFEST, text)
    for key in ("mien", "model", "options"):
        old, new = there.get(key), manifest[key]
        if old == new or (key == "model" and isinstance(old, dict) and old.get("sha256") == new["sha256"]):
            continue
        message = f"{key} {old} there, {new} here"
        if key == "model" and isinstance(old, dict):
            message = ", ".join(
                f"model {m['name']} ({m['sha256'][:12]}) {w}" for m, w in ((old, "there"), (new, "here"))
            )
        if key == "options" and isinstance(old, dict):
            changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            message = ", ".join(f"{name} {old.get(name)} there, {new.get(name)} here" for name in changed)
        raise MienError(f"{store.where}: {message}: not what it was begun with; read into another folder")
    return str(there.get("version"))


def _lists(store: Store) -> list[str]:
    return sorted(name for name in store.names(_FOLDER) if name.startswith("sources-") and name.endswith(".json"))


def _planned(store: Store) -> list[Shard]:
    shards: list[Shard] = []
    for name in _lists(store):
        name = f"{_FOLDER}/{name}"
        found = _json(store, name, store.read(name) or b"")
        try:
            if found["first"] != len(shards):
                raise MienError(f"{store.where}/{name}: does not begin at shard {len(shards)}: is a file missing?")
            for items in found["shards"]:
                shards.append(Shard(len(shards), tuple(i if isinstance(i, str) else tuple(i) for i in items)))
        except (KeyError, TypeError) as error:
            raise MienError(f"{store.where}/{name}: damaged") from error
    return shards


def _json(store: Store, name: str, text: bytes) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise MienError(f"{store.where}/{name}: damaged ({error})") from error


def _unknown(items: Sequence[Item], shards: Sequence[Shard]) -> list[Item]:
    """What is in no shard. A table is known by how many rows of it are, and must not have more or fewer since."""
    known: dict[str, int] = {}
    for item in (item for shard in shards for item in shard.items):
        name, _, count = (item, 0, 0) if isinstance(item, str) else item
        known[name] = known.get(name, 0) + count
    new = []
    for item in items:
        name, _, rows = (item, 0, 0) if isinstance(item, str) else item
        there = known.get(name)
        if there is None or (rows and not there):  # one that could not be opened then, and can be now
            new.append(item)
        elif rows and rows != there:
            raise MienError(f"{name}: {rows:,} rows, and {there:,} when it was planned: read it into another folder")
    return new


def _cut(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Lists of `size` pictures, a table's rows cut where a list is full."""
    lists: list[list[Item]] = []
    room = 0
    for item in items:
        name, first, left = (item, 0, 1) if isinstance(item, str) else item
        while True:
            if not room:
                lists.append([])
                room = size
            part = min(room, max(left, 1))
            lists[-1].append(item if isinstance(item, str) else (name, first, min(part, left)))
            first, left, room = first + part, left - part, room - part
            if left <= 0:
                break
    return lists


def _count(item: Item) -> int:
    return 1 if isinstance(item, str) else max(item[2], 1)


def _done(store: Store, shards: Sequence[Shard], again: bool) -> dict[str, Done]:
    """A file counts where it was made of just these sources; a damaged one is made anew."""
    there = store.names()
    made = [shard for shard in shards if shard.name in there]
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda shard: store.footer(shard.name), made))
    found = {}
    for shard, facts in zip(made, footers, strict=True):
        if facts and facts.get("shard") == shard.digest and not (again and facts["unread"]):
            found[shard.name] = Done(shard.name, facts["sources"], facts["faces"], facts["unread"])
    return found
