"""Debian hosts with real systemd, on this machine: containers that boot, take SSH, lose power and come back.

What the playbooks do is proven on them; `python -m tests.hosts --help` lists what can be done. The files, from
the outside in: `__main__` the commands, `fleet` a scenario's hosts and inventory, `podman` one host's life, `image`
what it boots from, `network` which addresses may be spoken to, `machine` what this machine must have; `server` a
download server with faults, `release` and `registry` what it serves.
"""
