# How gunicorn serves the appliance. `appliance serve` runs this file; `node` is its Config (docs/configuration.md).
import os

bind = node.bind

# One worker by design: a Pi's limit is the model, one gevent worker holds hundreds of slow streams, and only in one
# process are the queue, its fairness, the key table and the metrics simply right.
workers = 1
worker_class = "gevent"

# Connections held at once; more wait in the kernel. Slots and line bound the generations, this bounds the memory: room
# for all of them, and for those that a full line refuses or that ask how the node is.
worker_connections = node.max_concurrent_requests + node.max_queue_size + 1000
backlog = 256

# Seconds to read a request's head, and to keep an idle connection: a slow or silent client goes.
keepalive = 5

# The worker's heartbeat. Nothing blocks the hub for long, so half a minute without one means that it hangs.
timeout = 30

# SIGTERM: the worker drains by itself within DRAIN_S; this bounds it from outside, should it hang.
graceful_timeout = int(node.drain_s) + 5

# The heartbeat's file must not be on an SD card, where a touch can block.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

# `appliance drain` and `appliance resume` find the process here.
pidfile = str(node.pid_path)

# gunicorn 27 would make a control socket under the home directory.
control_socket_disable = True

# Warnings and errors to standard error; the service logs one line a generation by itself.
accesslog = None
errorlog = "-"
loglevel = "warning"

# Heads beyond this are refused by gunicorn itself; a key of 10 kB still comes through, for the service's own 401.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 16384

# gunicorn would believe a peer on loopback, a proxy perhaps, that hands on a client's SCRIPT_NAME, PATH_INFO or scheme.
forwarded_allow_ips = ""
forwarder_headers = ""
