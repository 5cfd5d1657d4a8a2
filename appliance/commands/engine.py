"""`appliance engine`: run the embedded engine, or only make sure that its model is here.

With --store it stands in for Ollama as a whole: it serves what is in a store, and pulls into it from a folder that
plays the registry.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from ipaddress import ip_address
from pathlib import Path

import click

from appliance.embedded import llama, weights
from appliance.embedded.api import VERSION, Api
from appliance.embedded.errors import SetupProblem
from appliance.embedded.gguf import Model
from appliance.embedded.models import Models, OneModel, StoredModels
from appliance.embedded.options import FOREVER_S, LoadOptions, parse_duration
from appliance.embedded.pull import Registry
from appliance.embedded.runner import Runner
from appliance.embedded.store import Store
from appliance.embedded.wire import Server

# Ollama has 512; but llama.cpp stops for a client that left, and serves the other slots, only between batches.
NUM_BATCH = 64

FOLDER = click.Path(file_okay=False, path_type=Path)


def _named_model(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, Path] | None:
    if value is None:
        return None
    name, _, file = value.partition("=")
    if not name or not file:
        raise click.BadParameter("write it as NAME:TAG=FILE.gguf")
    return name, Path(file)


def _keep_alive(context: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}; write it as 5m, 1h30m, or seconds; negative is for ever") from None
    return FOREVER_S if seconds < 0 else seconds


@click.command(help="Run the embedded engine: a small real model behind Ollama's API.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=11434, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--model", callback=_named_model, metavar="NAME:TAG=FILE.gguf", help="Serve this file instead.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--num-ctx", default=1024, show_default=True, type=click.IntRange(4), help="Tokens a slot.")
@click.option(
    "--parallel",
    default=2,
    show_default=True,
    type=click.IntRange(1, 64),
    envvar="OLLAMA_NUM_PARALLEL",
    help="Slots.",
)
@click.option("--keep-alive", default="5m", show_default=True, envvar="OLLAMA_KEEP_ALIVE", callback=_keep_alive)
@click.option(
    "--max-queue",
    default=512,
    show_default=True,
    type=click.IntRange(1),
    envvar="OLLAMA_MAX_QUEUE",
    help="Requests that may wait for a load.",
)
@click.option("--store", type=FOLDER, help="Serve the models of this Ollama store instead.")
@click.option("--registry", type=FOLDER, help="A store that models are pulled from.")
@click.option("--registry-rate", type=click.FloatRange(min=1), metavar="BYTES/S", help="How fast pulls may be.")
@click.option("--no-prune", is_flag=True, envvar="OLLAMA_NOPRUNE", help="Keep what a pull leaves unused.")
@click.option("--says-version", default=VERSION, show_default=True, help="What /api/version answers.")
@click.option("--fetch-only", is_flag=True, help="Make sure that the model is on this machine, and end.")
def command(
    host: str,
    port: int,
    model: tuple[str, Path] | None,
    threads: int,
    num_ctx: int,
    parallel: int,
    keep_alive: float,
    max_queue: int,
    store: Path | None,
    registry: Path | None,
    registry_rate: float | None,
    no_prune: bool,
    says_version: str,
    fetch_only: bool,
) -> None:
    if store is None and registry:
        raise click.UsageError("--registry needs --store, the folder that models are pulled into")
    if store and (model or fetch_only):
        raise click.UsageError("--store serves what is in it, so neither --model nor --fetch-only goes with it")
    llama.use_one_arena()
    try:
        llama.library()
        if store:
            source = Registry(Store(registry), registry_rate) if registry else None
            models: Models = _stored(store, source, not no_prune)
            what = f"the store {store}"
        else:
            served = Model.open(*(model or (weights.NAME, weights.ensure())))
            models, what = OneModel(served), served.name
    except SetupProblem as problem:
        raise click.ClickException(str(problem)) from None
    if fetch_only:
        click.echo(f"the model {served.name} is here: {served.path}")
        return
    runner = Runner(lambda wanted: llama.Llama(wanted.model, wanted.load, parallel), parallel, keep_alive, max_queue)
    defaults = LoadOptions(num_ctx=num_ctx, num_batch=NUM_BATCH, num_thread=threads)
    serve(host, port, Api(models, runner, defaults, _is_loopback(host), says_version), runner, what)


def _stored(directory: Path, registry: Registry | None, removes_unused: bool) -> StoredModels:
    """Raises: SetupProblem when the store cannot be made."""
    store = Store(directory)
    store.prepare()
    return StoredModels(store, registry, removes_unused)


def serve(host: str, port: int, api: Api, runner: Runner[llama.Llama], what: str) -> None:
    """Serve until SIGTERM or SIGINT, then end this process with 0. what: is served, for the line that tells it."""
    try:
        server = Server(host, port, api)
    except OSError as error:
        raise click.ClickException(_address_problem(host, port, error)) from None
    endings = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)  # for every thread to come, llama.cpp's too
    threading.Thread(target=runner.unload_expired_for_ever, daemon=True).start()
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    click.echo(f"listening on http://{host}:{server.port} with {what}, not Ollama but its API")
    sys.stdout.flush()
    signal.sigwait(endings)
    server.shutdown()
    server.server_close()
    # As Ollama does: running generations end here. The interpreter's own way out would wait for llama.cpp's
    # threads, which may be deep in a batch.
    os._exit(0)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address_problem(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken (perhaps by Ollama); choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs root; choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and --port"
