"""The appliance: an HTTP service that puts keys, a fair bounded queue and SSE in front of a local model."""

from importlib.metadata import version

__version__ = version("pi-llm-fleet")
