"""Serve a GGUF file with xllamacpp, a Python package of llama.cpp's own server; runs in the package's environment.

`python xllamacpp_server.py MODEL.gguf --port PORT --threads N -np SLOTS -c TOKENS`, as llama-server is started.
"""

import argparse
import signal

from xllamacpp import CommonParams, Server


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("-np", dest="slots", type=int, required=True, help="requests at a time")
    parser.add_argument("-c", dest="context", type=int, required=True, help="tokens, divided between the slots")
    arguments = parser.parse_args()
    params = CommonParams()
    params.model.path = arguments.model
    params.hostnames, params.port = ["127.0.0.1"], arguments.port
    params.n_parallel, params.n_ctx = arguments.slots, arguments.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.ui = False
    params.verbosity = 1  # errors
    server = Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
