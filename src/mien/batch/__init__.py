"""Pictures by the million: cut into shards, each read as one piece of work into one file, on one machine or on many."""

from mien.batch.cluster import ray_and_data, read_on_ray, running_ray
from mien.batch.plan import Plan, make_plan
from mien.batch.shard import Answer, Done, Job, Shard, ShardReader, sha256_of
from mien.batch.sources import find_sources
from mien.batch.store import Store, address

__all__ = [
    "Answer",
    "Done",
    "Job",
    "Plan",
    "Shard",
    "ShardReader",
    "Store",
    "address",
    "find_sources",
    "make_plan",
    "ray_and_data",
    "read_on_ray",
    "running_ray",
    "sha256_of",
]
