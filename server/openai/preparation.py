"""What a request becomes before the engine gets it; nobody waits for it any more when its client goes away."""

from dataclasses import dataclass

from starlette.types import Receive

from caravan.server.generation.request_grammar import RequestGrammar
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.disconnect import until_disconnect
from caravan.server.openai.prompts import chat_prompt, completion_prompts, echoed_texts
from caravan.server.openai.protocol.generation_requests import ChatRequest, CompletionRequest
from caravan.server.openai.structured_output.constraint import checked_grammar


@dataclass(frozen=True)
class Prepared:
    """The prompts of a request as token ids, the characters of each token if they are repeated, and the grammar."""

    prompts: list[list[int]]
    prompt_texts: list[list[str]] | None
    grammar: RequestGrammar | None


async def prepared_completion(
    served: ServedModel, request: CompletionRequest, key_name: str, receive: Receive
) -> Prepared:
    """Return what a completion becomes; raises ApiError, ClientDisconnect, ExecutorFull or WorkerUnavailable."""

    async def prepare() -> Prepared:
        prompts = await completion_prompts(served, request, key_name)
        grammar = await checked_grammar(served, request, key_name)
        return Prepared(prompts, await echoed_texts(served, request, prompts, key_name), grammar)

    return await until_disconnect(receive, prepare())


async def prepared_chat(served: ServedModel, request: ChatRequest, key_name: str, receive: Receive) -> Prepared:
    """Return what a chat becomes; raises ApiError, ClientDisconnect, ExecutorFull or WorkerUnavailable."""

    async def prepare() -> Prepared:
        prompt = await chat_prompt(served, request, key_name)
        return Prepared([prompt], None, await checked_grammar(served, request, key_name))

    return await until_disconnect(receive, prepare())
