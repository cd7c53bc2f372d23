"""The standby process: load the model, wait, and become the engine when the API process sends TakeOver.

Run as `python -m caravan.scheduler.standby FD`. Everything is loaded in a thread of low priority, also PyTorch, so this
module imports nothing that does; the thread that runs the steps later has the usual priority.
"""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from caravan.scheduler.messages import EngineLoaded, StartEngine, TakeOver
from caravan.scheduler.parent_connection import open_connection, reported_failures, run_process
from caravan.scheduler.priority import LowPriority, lower_thread_priority

if TYPE_CHECKING:
    from caravan.scheduler.loaded_model import LoadedModel


def stand_by(connection: socket.socket) -> None:
    """Load the model of the first message, run the engine after TakeOver, also if that comes before it has loaded.

    Raises BrokenPipeError or ConnectionResetError when the connection is closed.
    """
    priority = LowPriority()
    start, inbox, sender = open_connection(connection)
    loaded: LoadedModel | None = None
    is_taking_over = False
    with ThreadPoolExecutor(1, initializer=lower_thread_priority) as executor:
        loading = executor.submit(_load, start)
        loading.add_done_callback(lambda _: inbox.put(EngineLoaded()))
        while loaded is None or not is_taking_over:
            message = inbox.get()
            if isinstance(message, TakeOver):
                is_taking_over = True
                priority.end()
            else:
                assert isinstance(message, EngineLoaded), "requests follow the report of the engine"
                with reported_failures(sender):
                    loaded = loading.result()
                sender.send(message)
    from caravan.scheduler.process import run_engine

    run_engine(loaded, inbox, sender)


def _load(start: StartEngine) -> "LoadedModel":
    import caravan.scheduler.process  # noqa: F401  with all that the engine needs
    from caravan.scheduler.loaded_model import load

    return load(start, must_fit=True)


if __name__ == "__main__":
    run_process(stand_by)
