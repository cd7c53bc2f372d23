"""The commands of a chat: lines that begin with a slash."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caravan.cli.conversation import Conversation

HELP = """\
/system TEXT  set the system message; without TEXT, remove it
/think on|off let the model think or not; without a word, leave it to the model
/seed N       give the same answer to the same question; without N, another each time
/tokens N     end answers after N tokens; without N, where the model ends them
/regenerate   answer the last question again
/save FILE    save the conversation, as JSON if FILE ends with .json, else as Markdown
/reset        start a new conversation; the system message stays
/help         show this list
/exit         leave, as do Ctrl-D and, at the prompt, Ctrl-C
Ctrl-C during a response stops the response."""
_THINKING: dict[str, bool | None] = {"on": True, "off": False, "": None}


class WrongCommand(ValueError):
    """A command that cannot be run; the text is one line for the user."""


@dataclass(frozen=True)
class Reply:
    """What a command says, and what the chat does next."""

    text: str = ""
    question: str | None = None  # to be answered in place of the last turn
    is_over: bool = False


def obey(line: str, conversation: Conversation) -> Reply:
    """Run a command, which can change the conversation; raises WrongCommand."""
    command, _, argument = line.partition(" ")
    run = _COMMANDS.get(command)
    if run is None:
        raise WrongCommand(f"Unknown command {command}. /help lists the commands.")
    return run(conversation, argument.strip())


def _set_system(conversation: Conversation, text: str) -> Reply:
    conversation.system = text or None
    return Reply(f"The system message is {'set' if text else 'removed'}.")


def _think(conversation: Conversation, word: str) -> Reply:
    if word not in _THINKING:
        raise WrongCommand("Say /think on, /think off, or /think alone.")
    conversation.options.enable_thinking = _THINKING[word]
    return Reply(f"Thinking is {word or 'left to the model'}.")


def _set_seed(conversation: Conversation, text: str) -> Reply:
    conversation.options.seed = _number(text, "/seed", least=0)
    return Reply(f"The seed is {text}." if text else "The seed is another one each time.")


def _set_tokens(conversation: Conversation, text: str) -> Reply:
    conversation.options.max_tokens = _number(text, "/tokens", least=1)
    return Reply(f"Answers end after {text} tokens." if text else "Answers end where the model ends them.")


def _regenerate(conversation: Conversation, _: str) -> Reply:
    if not conversation.turns:
        raise WrongCommand("There is no answer yet.")
    return Reply(question=conversation.turns[-1][0])


def _save(conversation: Conversation, name: str) -> Reply:
    if not name:
        raise WrongCommand("Name a file: /save chat.md or /save chat.json.")
    try:
        conversation.save(Path(name).expanduser())
    except FileExistsError:
        raise WrongCommand(f"{name} exists. Choose another name.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no such user, for ~user
        raise WrongCommand(f"Cannot write {name}: {error}.") from None
    return Reply(f"Saved to {name}.")


def _reset(conversation: Conversation, _: str) -> Reply:
    conversation.turns.clear()
    return Reply("Started a new conversation.")


def _help(_: Conversation, __: str) -> Reply:
    return Reply(HELP)


def _exit(_: Conversation, __: str) -> Reply:
    return Reply(is_over=True)


def _number(text: str, command: str, *, least: int) -> int | None:
    """Return the number after a command, None if there is none; raises WrongCommand."""
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise WrongCommand(f"{command} needs a whole number from {least} on.")
    return int(text)


_COMMANDS: dict[str, Callable[[Conversation, str], Reply]] = {
    "/system": _set_system,
    "/think": _think,
    "/seed": _set_seed,
    "/tokens": _set_tokens,
    "/regenerate": _regenerate,
    "/save": _save,
    "/reset": _reset,
    "/help": _help,
    "/exit": _exit,
}
