"""MLflow's tracking server as a systemd service: what `mlflow server` starts, without its parent and its stalls.

`app` builds the ASGI application out of MLflow's own parts, `worker` runs it in gunicorn's workers, `artifacts` streams
to and from S3, `faults` says what is wrong when the database, the store or the disk fails, `logins` limits wrong
passwords, `metrics` counts for Prometheus, `health` answers a load balancer, `outages` lets requests wait for a
database that fails over, and `edge` stands in for nginx in a container.
"""
