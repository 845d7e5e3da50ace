# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How many database connections a stack's servers may hold: arithmetic only, docs/scaling.md says why.

RDS for PostgreSQL sets max_connections to LEAST({DBInstanceClassMemory/9531392}, 5000) (RDS User Guide, "Quotas and
constraints", "Maximum number of database connections"). DBInstanceClassMemory is the memory of the class in bytes
less what the operating system and RDS's own processes take (same guide, "DB parameter formula variables"), which AWS
does not publish; 300 MiB is what we take off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BYTES_PER_CONNECTION = 9531392
MOST_CONNECTIONS = 5000
SYSTEM_MIB = 300
RESERVED = 15
"""For RDS itself, for superusers, and for a person who has to look; no server of a stack uses them."""

DIRECT = 10
"""For what goes past a proxy: the schema step and the dump before it, clean-up, the first look of a run."""
POOL = 20
"""Twice as many are the requests that a worker has in hand at the most (THREADS in mlflow_service/app.py), each with a
connection to the proxy, where there is one; pools of that size never keep a worker from being started."""
MOST_WORKERS = 8
UNKNOWN_PERCENT = (75, 37)
"""What a proxy may open, alone and beside direct servers, where nobody can tell the memory of the class."""

NEEDED = {"host": 12, "fleet": 12, "fargate": 8}
"""What one server with one worker needs: two pools of two, a connection that answers the balancer, and two for what
runs beside it; on a host as much again for the worker that stands by (roles/mlflow_server/vars/main.yml)."""


@dataclass(frozen=True)
class Capacity:
    """What the database carries, and what each of @servers that can run at once gets of it."""

    topology: str
    servers: int
    maximum: int
    share: int

    @property
    def usable(self) -> int:
        return max(self.maximum - RESERVED, 0)

    @property
    def per_server(self) -> int:
        return self.share // self.servers

    @property
    def needed(self) -> int:
        """What the servers need together, at the least."""
        return self.servers * NEEDED[self.topology]

    @property
    def fits(self) -> bool:
        return self.needed <= self.share <= self.usable


def max_connections(memory_mib: int) -> int:
    """RDS's max_connections for a class with @memory_mib, rounded down."""
    return min(max(memory_mib - SYSTEM_MIB, 0) * 1024 * 1024 // BYTES_PER_CONNECTION, MOST_CONNECTIONS)


def share_of(memory_mib: int) -> int:
    """What the servers of one topology may hold together: half, so that two can run side by side during a move."""
    return max(max_connections(memory_mib) - RESERVED, 0) // 2


def _deployment_percent(min_tasks: int) -> int:
    """The service's maximumPercent: a single task must double to be replaced, more get half as many again."""
    return 200 if min_tasks == 1 else 150


def servers_at_once(topology: str, size: int, min_tasks: int = 1) -> int:
    """How many servers run at once at the most, where @size is the number of hosts or the most tasks.

    On Fargate that is a deployment at the upper end of the scaling; ECS rounds down (ECS API, DeploymentConfiguration).
    """
    return size * _deployment_percent(min_tasks) // 100 if topology == "fargate" else size


def largest_size(topology: str, share: int, min_tasks: int = 1) -> int:
    """The largest number of hosts or tasks whose servers at once @share carries."""
    servers = share // NEEDED[topology]
    return ((servers + 1) * 100 - 1) // _deployment_percent(min_tasks) if topology == "fargate" else servers


def capacity(topology: str, servers: int, memory_mib: int, given: int = 0) -> Capacity:
    """What a database with @memory_mib carries; @given is the share that a user has set, 0 for the computed one."""
    return Capacity(topology, servers, max_connections(memory_mib), given or share_of(memory_mib))


def pooled_per_server(topology: str, vcpus: int) -> int:
    """What a server that works through a proxy may hold towards it: enough for a worker on each vCPU.

    What each of its requests holds and the balancer's question, also for the worker that stands by on a host; two more
    for clean-up.
    """
    workers = min(max(vcpus, 1), MOST_WORKERS) + (topology != "fargate")
    return 2 + workers * (2 * POOL + 1)


def proxied(memory_mib: int, given: int = 0) -> int:
    """How many connections a proxy may open when all servers work through it."""
    room = max(max_connections(memory_mib) - RESERVED - DIRECT, 0)
    return min(given, room) if given else room


def proxy_percents(memory_mib: int, given: int = 0) -> tuple[int, int]:
    """The same in percent of max_connections, as RDS Proxy wants it: alone, and while the servers of one topology hold
    their direct share beside it, because the proxy was just built or is about to go."""
    maximum = max_connections(memory_mib)
    if not maximum:
        return UNKNOWN_PERCENT
    alone = proxied(memory_mib, given)
    beside = min(proxied(memory_mib) - (given or share_of(memory_mib)), alone)
    return max(alone * 100 // maximum, 1), max(beside * 100 // maximum, 1)


def smallest_that_fits(topology: str, servers: int, memories: Mapping[str, int], given: int = 0) -> str:
    """The class of @memories (its name: its MiB) with the least memory that carries @servers, or an empty string."""
    fitting = [(memory, name) for name, memory in memories.items() if capacity(topology, servers, memory, given).fits]
    return min(fitting, default=(0, ""))[1]
