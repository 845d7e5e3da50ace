"""An AWS account on this machine, for demos and tests: moto answers the API, Docker runs what must really run."""
