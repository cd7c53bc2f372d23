"""An event that the host can wait for."""

import torch


def recorded_event(device: torch.device) -> torch.cuda.Event | None:
    """Return an event after all work that a GPU has been given; None on other devices, which are done already."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
    event.record()
    return event
