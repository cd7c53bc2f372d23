"""The chat in the terminal: what it sends, what it shows, and how it ends."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import httpx
import pytest

from caravan.cli.conversation import AnswerOptions
from caravan.cli.terminal_chat import run_chat

URL = "http://127.0.0.1:8000"
DONE = b"data: [DONE]\n\n"


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def piece(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]})


def thought(text: str, name: str = "reasoning") -> bytes:
    return event({"choices": [{"index": 0, "delta": {name: text}, "finish_reason": None}]})


def usage(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}})


def says(*texts: str) -> list[bytes]:
    return [*map(piece, texts), piece("", "stop"), usage(len(texts)), DONE]


def refusal(status: int, message: str, code: str | None = None) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": code}})


class Body(httpx.SyncByteStream):
    """A response body that may raise between two chunks, and knows whether it was closed."""

    def __init__(self, chunks: Iterable[bytes | BaseException]) -> None:
        self.chunks = chunks
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.is_closed = True


Answer = list[bytes] | Body | httpx.Response | httpx.HTTPError


class FakeServer(httpx.MockTransport):
    """Gives its answers in turn, and remembers the requests."""

    def __init__(self, *answers: Answer, models: httpx.Response | Exception | None = None) -> None:
        super().__init__(self._respond)
        self.answers = list(answers)
        self.models = models or httpx.Response(200, json={"object": "list", "data": [{"id": "tiny"}, {"id": "other"}]})
        self.requests: list[httpx.Request] = []
        self.bodies: list[dict[str, Any]] = []

    def _respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.method == "GET":
            assert request.url.path == "/v1/models"
            if isinstance(self.models, Exception):
                raise self.models
            return self.models
        assert request.url.path == "/v1/chat/completions"
        self.bodies.append(json.loads(request.content))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, stream=answer if isinstance(answer, Body) else Body(answer))

    def messages(self, index: int = -1) -> list[tuple[str, str]]:
        return [(message["role"], message["content"]) for message in self.bodies[index]["messages"]]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class InterruptedTerminal(Terminal):
    """A terminal at which Ctrl-C is pressed after the lines that were typed."""

    def readline(self, size: int = -1, /) -> str:
        line = super().readline()
        if not line:
            raise KeyboardInterrupt
        return line


class Chat:
    """One run of the chat with what it has written."""

    def __init__(
        self,
        server: httpx.BaseTransport,
        typed: str | TextIO,
        *,
        is_terminal: bool = True,
        url: str = URL,
        **options: Any,
    ) -> None:
        kind = Terminal if is_terminal else io.StringIO
        stdin = kind(typed) if isinstance(typed, str) else typed
        stdout, stderr = kind(), kind()
        self.exit_code = run_chat(url, stdin=stdin, stdout=stdout, stderr=stderr, transport=server, **options)
        self.shown = stdout.getvalue()
        self.complaints = stderr.getvalue()


def pipe(server: FakeServer, typed: str | TextIO, **options: Any) -> Chat:
    return Chat(server, typed, is_terminal=False, **options)


def test_each_line_of_a_pipe_is_a_prompt_and_only_the_answers_are_shown() -> None:
    server = FakeServer(says("Hel", "lo."), says("Again."))
    chat = pipe(server, "hi\n/reset\n")
    assert chat.shown == "Hello.\nAgain.\n"
    assert chat.exit_code == 0
    assert server.messages() == [("user", "hi"), ("assistant", "Hello."), ("user", "/reset")]


def test_the_request_names_the_first_model_and_asks_for_a_stream_with_usage() -> None:
    server = FakeServer(says("x"))
    pipe(server, "hi\n", options=AnswerOptions(temperature=0.7, seed=3, max_tokens=9))
    assert server.bodies[0] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.7,
        "seed": 3,
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_named_model_and_a_key_are_sent() -> None:
    server = FakeServer(says("x"))
    pipe(server, "hi\n", model="other", api_key="secret")
    assert server.bodies[0]["model"] == "other"
    assert all(request.headers["authorization"] == "Bearer secret" for request in server.requests)


def test_a_terminal_shows_prompts_and_the_length_of_the_answer() -> None:
    chat = Chat(FakeServer(says("a", "b", "c")), "hi\n")
    assert "Chatting with tiny" in chat.shown
    assert "> abc\n" in chat.shown
    assert "3 tokens" in chat.shown


def test_commands_set_the_system_message_and_forget_the_conversation() -> None:
    server = FakeServer(says("a"), says("b"), says("c"))
    Chat(server, "/system be brief\none\ntwo\n/reset\n/system\nthree\n/exit\nnever\n")
    assert server.messages(0) == [("system", "be brief"), ("user", "one")]
    assert server.messages(1)[-2:] == [("assistant", "a"), ("user", "two")]
    assert server.messages(2) == [("user", "three")]
    assert len(server.bodies) == 3


def test_an_unknown_command_is_named_and_not_sent() -> None:
    server = FakeServer()
    chat = Chat(server, "/rest\n")
    assert "Unknown command /rest" in chat.complaints
    assert server.bodies == []


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_a_terminal_shows_a_thought_faint_before_the_answer(name: str) -> None:
    server = FakeServer([thought("Let me ", name), thought("see.", name), *says("Four", ".")], says("Five."))
    chat = Chat(server, "two and two\nand one\n")
    assert "> \x1b[2mLet me see.\x1b[0m\n\nFour.\n" in chat.shown
    assert server.messages(1)[1] == ("assistant", "Four.")  # without the thought


def test_without_colors_a_thought_has_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    chat = Chat(FakeServer([thought("Let me see."), *says("Four.")]), "two and two\n")
    assert "> Thought: Let me see.\n\nFour.\n" in chat.shown
    assert "\x1b" not in chat.shown


def test_a_pipe_gets_the_answer_without_the_thought() -> None:
    chat = pipe(FakeServer([thought("Let me see."), *says("Four.")]), "two and two\n")
    assert chat.shown == "Four.\n"


def test_a_thought_that_is_stopped_ends_its_color_and_is_not_kept() -> None:
    server = FakeServer(Body([thought("Let me"), KeyboardInterrupt()]), says("x"))
    chat = Chat(server, "one\ntwo\n")
    assert "\x1b[2mLet me\x1b[0m\n" in chat.shown
    assert server.messages(1) == [("user", "two")]


def test_control_characters_of_a_thought_are_not_shown() -> None:
    chat = Chat(FakeServer([thought("a\x1b]0;title\x07b"), *says("Four.")]), "one\n")
    assert "\x1b[2ma]0;titleb\x1b[0m" in chat.shown


def test_think_switches_thinking_and_alone_leaves_it_to_the_model() -> None:
    server = FakeServer(*(says("x") for _ in range(4)))
    chat = Chat(server, "one\n/think on\ntwo\n/think off\nthree\n/think\nfour\n/think hard\n")
    assert [body.get("enable_thinking") for body in server.bodies] == [None, True, False, None]
    assert "enable_thinking" not in server.bodies[3]
    for said in ("Thinking is on.", "Thinking is off.", "Thinking is left to the model."):
        assert said in chat.shown
    assert "/think off" in chat.complaints


def test_a_warning_of_the_server_is_shown_once() -> None:
    warned = event(
        {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "warnings": ["`enable_thinking` has no effect."]}
    )
    server = FakeServer([warned, *says("x")], [warned, *says("y")])
    chat = Chat(server, "/think on\none\ntwo\n")
    assert chat.complaints == "`enable_thinking` has no effect.\n"


def test_help_lists_the_commands() -> None:
    assert "/system TEXT" in Chat(FakeServer(), "/help\n").shown


def test_ctrl_c_during_an_answer_stops_it_and_keeps_what_came() -> None:
    body = Body([piece("so far"), KeyboardInterrupt()])
    server = FakeServer(body, says("x"))
    chat = Chat(server, "one\ntwo\n")
    assert chat.exit_code == 0
    assert body.is_closed
    assert server.messages(1)[:2] == [("user", "one"), ("assistant", "so far")]


def test_ctrl_c_at_the_prompt_leaves() -> None:
    assert Chat(FakeServer(), InterruptedTerminal("")).exit_code == 0


def test_a_refusal_is_shown_and_a_pipe_ends_with_status_one() -> None:
    server = FakeServer(refusal(400, "too long", "context_length_exceeded"), says("never"))
    chat = pipe(server, "one\ntwo\n")
    assert chat.exit_code == 1
    assert "too long /reset starts a new conversation." in chat.complaints
    assert len(server.bodies) == 1


def test_after_a_refusal_a_terminal_goes_on_without_the_refused_prompt() -> None:
    server = FakeServer(refusal(503, "not ready"), says("x"))
    assert Chat(server, "one\ntwo\n").exit_code == 0
    assert server.messages(1) == [("user", "two")]


def test_an_error_event_in_a_stream_is_shown() -> None:
    failure = event({"error": {"message": "The engine stopped.", "code": "unavailable"}})
    chat = pipe(FakeServer([piece("begun"), failure, DONE]), "one\n")
    assert chat.exit_code == 1
    assert chat.shown == "begun\n"
    assert "The engine stopped." in chat.complaints


def test_a_stream_without_its_end_is_an_error() -> None:
    assert "before it was complete" in pipe(FakeServer([piece("begun")]), "one\n").complaints


def test_no_server_is_one_line_that_says_how_to_start_one() -> None:
    chat = pipe(FakeServer(models=httpx.ConnectError("refused")), "one\n")
    assert chat.exit_code == 1
    assert chat.complaints == f"No server answers at {URL}. Start one with `caravan serve`.\n"


def test_something_else_at_the_address_is_named() -> None:
    chat = pipe(FakeServer(models=httpx.Response(200, text="<html>")), "one\n")
    assert "lists no model" in chat.complaints


def test_control_characters_of_an_answer_do_not_reach_the_terminal() -> None:
    assert pipe(FakeServer(says("a\x1b[2Jb\x07\tc")), "one\n").shown == "a[2Jb\tc\n"


def test_events_may_be_split_anywhere_and_comments_are_dropped() -> None:
    whole = b": ping\n\n" + b"".join(says("né", "xt"))
    server = FakeServer(Body([whole[i : i + 1] for i in range(len(whole))]))
    assert pipe(server, "one\n").shown == "néxt\n"


def test_a_chat_without_options_leaves_them_to_the_server() -> None:
    server = FakeServer(says("x"))
    pipe(server, "hi\n")
    assert set(server.bodies[0]) == {"model", "messages", "stream", "stream_options"}


def test_seed_and_tokens_are_sent_from_then_on_and_can_be_removed() -> None:
    server = FakeServer(*(says("x") for _ in range(3)))
    chat = Chat(server, "/seed 7\n/tokens 20\none\n/seed\ntwo\n/tokens\nthree\n/seed x\n/tokens 0\n")
    assert [(body.get("seed"), body.get("max_tokens")) for body in server.bodies] == [(7, 20), (None, 20), (None, None)]
    assert chat.complaints == "/seed needs a whole number from 0 on.\n/tokens needs a whole number from 1 on.\n"


def test_regenerate_replaces_the_last_answer() -> None:
    server = FakeServer(says("a"), says("b"), says("c"), says("d"))
    Chat(server, "one\ntwo\n/regenerate\nthree\n")
    assert server.messages(2) == [("user", "one"), ("assistant", "a"), ("user", "two")]
    assert server.messages(3)[2:] == [("user", "two"), ("assistant", "c"), ("user", "three")]


def test_an_answer_stays_if_it_cannot_be_regenerated() -> None:
    server = FakeServer(says("a"), refusal(503, "not ready"), says("b"))
    chat = Chat(server, "/regenerate\none\n/regenerate\ntwo\n")
    assert chat.complaints == "There is no answer yet.\nnot ready\n"
    assert server.messages() == [("user", "one"), ("assistant", "a"), ("user", "two")]


def test_a_conversation_is_saved_once_as_json_or_markdown(tmp_path: Path) -> None:
    typed = f"/system brief\none\n/save {tmp_path}/a.json\n/save {tmp_path}/a.md\n/save {tmp_path}/a.md\n/save\n"
    chat = Chat(FakeServer(says("**A** é")), f"/seed 3\n{typed}/save {tmp_path}/none/a.md\n")
    saved = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert (saved["model"], saved["seed"]) == ("tiny", 3)
    assert [message["content"] for message in saved["messages"]] == ["brief", "one", "**A** é"]
    text = (tmp_path / "a.md").read_text("utf-8")
    assert text == "# Conversation with tiny\n\n**System:**\n\nbrief\n\n**User:**\n\none\n\n**Assistant:**\n\n**A** é\n"
    exists, unnamed, nowhere = chat.complaints.splitlines()
    assert exists == f"{tmp_path}/a.md exists. Choose another name."
    assert unnamed.startswith("Name a file:")
    assert nowhere.startswith(f"Cannot write {tmp_path}/none/a.md: ")


def test_markdown_of_an_answer_is_drawn_at_a_terminal_and_its_text_is_kept() -> None:
    server = FakeServer([thought("Let me *see*."), *says("Some **bold**", " text\n\n- a\x1b[2J\n", "- b\n")], says("x"))
    chat = Chat(server, "one\ntwo\n", is_rendered=True)
    assert "Let me *see*." in chat.shown
    assert "Some \x1b[1mbold\x1b[0m text" in chat.shown
    assert " • " in chat.shown
    assert "a[2J " in chat.shown
    assert "\x1b[2J" not in chat.shown
    assert server.messages(1)[1] == ("assistant", "Some **bold** text\n\n- a\x1b[2J\n- b\n")
