"""Tracebacks for the log: which words of an exception they hold."""

import logging
import socket

import msgspec
import pytest

from caravan.model.checkpoint import BrokenCheckpoint
from caravan.scheduler.channel import FrameSplitter
from caravan.scheduler.message_sender import MessageSender, MessageSenderHandler
from caravan.scheduler.messages import EngineLog, FromEngine
from caravan.scheduler.tracebacks import described, traceback_text

CANARY = "canary-7351"


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_errors_of_libraries_show_their_class_and_our_own_also_their_message() -> None:
    assert described(ValueError(CANARY)) == "ValueError"
    assert described(socket.gaierror(CANARY)) == "socket.gaierror"
    assert described(BrokenCheckpoint("our own words")).endswith(".BrokenCheckpoint: our own words")


def test_the_causes_come_first() -> None:
    error = raised(RuntimeError(CANARY))
    error.__cause__ = raised(KeyError(CANARY))
    text = traceback_text(error)
    assert CANARY not in text
    assert text.index("KeyError") < text.rindex("RuntimeError")
    assert text.count("Traceback (most recent call last):") == 2


def test_threat_31_log_records_of_exceptions_quote_no_library() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        logger = logging.Logger("engine")
        logger.addHandler(MessageSenderHandler(MessageSender(ours)))
        try:
            raise IndexError(CANARY)
        except IndexError:
            logger.exception("A step failed.")
        [frame] = FrameSplitter().split(theirs.recv(65536))
    message = msgspec.msgpack.Decoder(FromEngine).decode(frame)
    assert isinstance(message, EngineLog)
    assert CANARY not in message.text
    assert "A step failed." in message.text
    assert "IndexError" in message.text
