"""caravan rank."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from caravan.cli.fail import USAGE_ERROR, fail
from caravan.cli.model_argument import Model, resolved
from caravan.scheduler.rank_options import REFUSED, RankOptions
from caravan.scheduler.rank_secret import NotAdmitted, enter, read_secret
from caravan.scheduler.rank_socket import host_and_port, tune

PROGRAM = ("-P", "-m", "caravan.scheduler.joining_rank")  # -P: modules in the current folder must not shadow others
PAUSE_SECONDS = 1.0  # between two tries to join an engine
CONNECT_SECONDS = 5.0


def rank(
    model: Model,
    join: Annotated[str, typer.Option(help="Address of the engine: --rank-address.", metavar="HOST:PORT")],
    secret_file: Annotated[Path, typer.Option(help="File with the secret of --rank-secret-file.", metavar="FILE")],
    num_threads: Annotated[
        int | None, typer.Option(help="Number of compute threads. Default: one per core.", min=1, metavar="NUMBER")
    ] = None,
) -> None:
    """Compute a part of a model for a server on another host.

    The server needs the options --tensor-parallel and --remote-ranks. The rank
    waits until the server's engine starts, and joins the next engine when that
    one has ended. Both hosts need the same model, the same version of Caravan
    and the same kind of processor.
    """
    try:
        address, secret = host_and_port(join), read_secret(secret_file)
    except ValueError as error:
        fail(str(error), USAGE_ERROR)
    options = RankOptions(model_path=str(resolved(model)), address=join, num_threads=num_threads)
    is_waiting = False
    while True:
        try:
            connection = connected(address, secret)
        except NotAdmitted as error:
            fail(f"{join}: {error}")
        except OSError as error:
            if not is_waiting:
                typer.echo(f"Waiting for an engine at {join} ({error.strerror or 'no answer'}).")
            is_waiting = True
        else:
            is_waiting = False
            with connection:
                code = run(connection, options)
            if code == REFUSED:  # the process has said why
                raise SystemExit(1)
            typer.echo(f"The rank has ended. The next one joins at {join}.")
        time.sleep(PAUSE_SECONDS)


def connected(address: tuple[str, int], secret: bytes) -> socket.socket:
    """Return a connection to an engine, on which both ends have shown the secret; raises OSError or NotAdmitted."""
    connection = socket.create_connection(address, CONNECT_SECONDS)
    try:
        tune(connection)
        enter(connection, secret)
    except BaseException:
        connection.close()
        raise
    return connection


def run(connection: socket.socket, options: RankOptions) -> int:
    """Run a process that is a rank; return its exit status when it has ended. It ends with this process, too."""
    from caravan.server.engine.process import engine_environment

    with subprocess.Popen(
        [sys.executable, *PROGRAM, str(connection.fileno()), msgspec.json.encode(options).decode()],
        pass_fds=(connection.fileno(),),
        stdin=subprocess.PIPE,  # its end tells the process that this one has ended
        env=engine_environment(os.environ),
    ) as process:
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise
