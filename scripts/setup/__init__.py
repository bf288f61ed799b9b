"""What `make setup` does, with nothing but Python's standard library.

Steps, in order, each in its own file: `packages` (from the distribution), `machine` (the kernel's features), `python` (.venv),
`node` (from its PyPI wheel), `runsc` (from its Go module), `agent` (from this checkout's Rust sources), `image` (the base image)
and `user` (the system user that the API runs as). `__main__` runs them.

Whatever takes long to make is kept in the cache directory (`cache.root()`) under a key of everything it is made from, so a
fresh checkout finds it there and `.hutch/` holds only links. Results appear by rename: a killed run leaves no half of one.
Nothing here runs as root except what has to: `shell.privileged` puts `sudo` in front where the caller is someone else.
"""
