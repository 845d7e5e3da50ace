"""Renew the certificate of the server NAME by UNIT, its timer's own, while clients that trust CA ask without a pause.

Fails if one request fails, or if the new certificate is not served. Runs on the host under test.
"""

import http.client
import ssl
import subprocess
import sys
import threading
import time

CLIENTS = 4
PATIENCE = 30

name, ca, unit = sys.argv[1:]
trust = ssl.create_default_context(cafile=ca)
stop = threading.Event()
answers: list[int] = []
failures: list[str] = []


def serial() -> str:
    connection = http.client.HTTPSConnection(name, timeout=10, context=trust)
    connection.connect()
    try:
        return str(connection.sock.getpeercert()["serialNumber"])
    finally:
        connection.close()


def client() -> None:
    while not stop.is_set():
        connection = http.client.HTTPSConnection(name, timeout=10, context=trust)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            answers.append(response.status)
        except (OSError, http.client.HTTPException) as error:
            failures.append(repr(error))
        finally:
            connection.close()


before = after = serial()
clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
for thread in clients:
    thread.start()
try:
    subprocess.run(["systemctl", "start", unit], check=True)
    deadline = time.monotonic() + PATIENCE
    while after == before and time.monotonic() < deadline:
        time.sleep(0.2)
        after = serial()
    # The old workers of nginx end in the meantime.
    time.sleep(2)
finally:
    stop.set()
    for thread in clients:
        thread.join()

wrong = [status for status in answers if status != 200]
print(f"serial {before} -> {after}; {len(answers)} answers, {len(wrong)} of them not 200, {len(failures)} failures")
sys.exit(f"{wrong[:3]} {failures[:3]}" if after == before or wrong or failures or len(answers) < 100 else 0)
