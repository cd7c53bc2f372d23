"""A server that leaks four kilobytes per request, which the leak test must detect."""

from dataclasses import replace
from unittest.mock import patch

from fastapi import FastAPI

from caravan.cli.main import main
from caravan.server.app import AppParts, create_app


def run() -> None:
    """Serve as `caravan serve` does, and leak."""
    kept: list[bytearray] = []

    def create_leaky_app(parts: AppParts) -> FastAPI:
        return create_app(replace(parts, on_response=lambda _: kept.append(bytearray(4096))))

    with patch("caravan.server.shared_parts.create_app", create_leaky_app):
        main()


if __name__ == "__main__":
    run()
