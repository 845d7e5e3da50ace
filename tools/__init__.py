"""Programs of the checkout: set-up, demo and tests. `tools/bootstrap.py` starts them; the Makefile names them."""
