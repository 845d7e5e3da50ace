"""Ask several hosts as many clients do, and count the connections that each holds to the database meanwhile.

Usage: connections.py --database ADDRESS --host NAME ADDRESS,ADDRESS with both passwords in the environment. Prints, for
each address, the most connections at once, and how often the server answered, was ready, and said that it was not.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import http.client
import json
import os
import ssl
import threading
import time

import psycopg2

SECONDS = 45
CLIENTS = 6
COUNT = """
    SELECT host(client_addr), count(*) FROM pg_stat_activity WHERE usename = current_user AND client_addr IS NOT NULL
    GROUP BY client_addr
"""
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=100"


class Fleet:
    """The hosts, and what is seen of them."""

    def __init__(self, host: str, addresses: list[str]) -> None:
        self.addresses = addresses
        self.context = ssl.create_default_context()
        # As a balancer, which looks at no certificate.
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        login = base64.b64encode(f"admin:{os.environ['MLFLOW_TRACKING_PASSWORD']}".encode()).decode()
        self.headers = {"Host": host, "Authorization": f"Basic {login}"}
        self.seen = {address: collections.Counter(most=0, answered=0, ready=0, away=0) for address in addresses}
        self.lock = threading.Lock()
        self.end = time.monotonic() + SECONDS

    def ask(self, address: str, path: str, headers: dict[str, str]) -> int:
        """Return the status of an answer; 0 where there is none."""
        with contextlib.closing(http.client.HTTPSConnection(address, timeout=30, context=self.context)) as connection:
            try:
                connection.request("GET", path, headers=headers)
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return 0

    def note(self, address: str, what: str) -> None:
        """Count it."""
        with self.lock:
            self.seen[address][what] += 1

    def use(self, address: str) -> None:
        """Be a client until the end."""
        while time.monotonic() < self.end:
            if self.ask(address, SEARCH, self.headers) == 200:
                self.note(address, "answered")

    def watch(self, address: str) -> None:
        """Be a balancer until the end."""
        while time.monotonic() < self.end:
            self.note(address, "ready" if self.ask(address, "/ready", {"Host": address}) == 200 else "away")
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("addresses", type=lambda text: text.split(","))
    given = parser.parse_args()
    fleet = Fleet(given.host, given.addresses)
    threads = [threading.Thread(target=fleet.watch, args=[address]) for address in given.addresses]
    threads += [threading.Thread(target=fleet.use, args=[one]) for one in given.addresses for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    with contextlib.closing(psycopg2.connect(host=given.database, dbname="mlflow", user="mlflow")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            while time.monotonic() < fleet.end:
                cursor.execute(COUNT)
                for address, count in cursor.fetchall():
                    if address in fleet.seen:
                        fleet.seen[address]["most"] = max(count, fleet.seen[address]["most"])
                time.sleep(0.02)
    for thread in threads:
        thread.join()
    print(json.dumps(fleet.seen))


if __name__ == "__main__":
    main()
