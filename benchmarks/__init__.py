"""The benchmark of the stack against the tutorial's server and against a bare tuned one."""
