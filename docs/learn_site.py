"""A copy of the page's lessons without a server, with recorded answers: `python -m docs.learn_site URL FOLDER`.

A web server for files is enough to publish it: browsers do not load modules from a folder.
"""

import asyncio
import html
import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx

from caravan import __version__
from caravan.server.operations.source_code import FILES

ROOT = Path(__file__).parents[1]
WEB = ROOT / "server" / "web"
STYLES = ("theme.css", "chat/chat.css", "learn/learn.css")
TIMEOUT_SECONDS = 300  # of an answer: the first trace loads the model
_IMPORTS = re.compile(r'(?:from|import)\s*\(?\s*"(\.[^"]+)"')
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="content-security-policy" content="default-src 'none'; script-src 'self'; style-src 'self';
 connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'">
<title>Watch a model read</title>
<link rel="icon" href="data:,">
{styles}
<script type="module" src="web/learn/site.js"></script>
</head>
<body>
<main class="learn">
<h1>Watch a model read</h1>
<p>The lessons of Caravan {version}, with what a server computed for {model}. No server is behind this page: other texts
need one of your own.</p>
<div id="lessons"></div>
</main>
</body>
</html>
"""

Json = Any


async def write_site(http: httpx.AsyncClient, folder: Path) -> int:
    """Write the pages and the answers of the server, and return the number of answers; raises httpx.HTTPError."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "recorded").mkdir(parents=True)
    for name in modules("learn/site.js") | {*STYLES}:
        _copy(WEB / name, folder / "web" / name)
    for name in FILES:
        _copy(ROOT / name, folder / "web" / "code" / name)
    recorder = _Recorder(http, folder / "recorded")
    model = await recorder.record_all(examples())
    styles = "\n".join(f'<link rel="stylesheet" href="web/{name}">' for name in STYLES)
    page = _PAGE.format(styles=styles, version=html.escape(__version__), model=html.escape(model))
    (folder / "index.html").write_text(page, "utf-8")
    return recorder.num_answers


def examples() -> Json:
    """Return what the lessons begin with."""
    text = (WEB / "learn" / "examples.js").read_text("utf-8")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def modules(name: str) -> set[str]:
    """Return a module of the page and all that it imports, at once or later, by their paths in the folder."""
    found, left = set(), [name]
    while left:
        one = left.pop()
        if one in found:
            continue
        found.add(one)
        source = (WEB / one).read_text("utf-8")
        paths = [(WEB / one).parent / imported for imported in _IMPORTS.findall(source)]
        left += [path.resolve().relative_to(WEB.resolve()).as_posix() for path in paths]
    return found


def name_of(path: str, body: Json = None, beside: int = 0) -> str:
    """Return the name of the file with the answer to a request, as recorded.js does: the FNV-1a hash in 64 bits.

    `beside` is the number of other requests that ran at the time, where the answer says something about them.
    """
    text = f"{path} {json.dumps(body, sort_keys=True, separators=(',', ':'), ensure_ascii=False)}"
    if beside:
        text += f" beside {beside}"
    hashed = 0xCBF29CE484222325
    for byte in text.encode():
        hashed = (hashed ^ byte) * 0x100000001B3 % 2**64
    return f"{hashed:016x}.json"


def tokenize_body(line: str) -> Json:
    """Return the body that cuts a line into tokens; this and the others are those of bodies.js."""
    return {"prompt": line, "add_special_tokens": False, "return_pieces": True}


def paging_body(paging: Json, prompts: list[list[int]], block_size: int, pool: int) -> Json:
    """Return the simulation of prompts in a pool of `pool` tokens."""
    return {
        "requests": [{"prompt": prompt, "max_tokens": paging["max_tokens"]} for prompt in prompts],
        "num_blocks": max(pool // block_size, 1),
        "block_size": block_size,
        "max_num_seqs": paging["max_num_seqs"],
        "max_batch_tokens": paging["max_batch_tokens"],
    }


def batching_body(batching: Json, chosen: Json, *, waits_for_all: bool) -> Json:
    """Return the simulation of the example's requests."""
    requests = [
        {
            "prompt": [1000 * index + place for place in range(length)],
            "max_tokens": max_tokens,
            "step": chosen["every"] * index,
        }
        for index, (length, max_tokens) in enumerate(batching["requests"])
    ]
    limits = {name: value for name, value in chosen.items() if name != "every"}
    cost = {name: batching[name] for name in ("step_ms", "token_ms")}
    return {"requests": requests, "num_blocks": 128, "waits_for_all": waits_for_all} | limits | cost


def seed_bodies(same_seed: Json, trace: Json) -> tuple[Json, Json]:
    """Return the request with a seed after the tokens of a trace, and those that run beside it."""
    ids = [token["id"] for token in trace["tokens"]]
    max_tokens = same_seed["max_tokens"]
    common = {"model": trace["model"], "ignore_eos": True} | same_seed["sampling"]
    company = [[*ids, ids[index % len(ids)]] for index in range(same_seed["others"])]
    mine = {"prompt": ids, "seed": same_seed["seed"], "max_tokens": max_tokens}
    mine |= {"return_token_ids": True, "explain": True}
    return common | mine, common | {"prompt": company, "seed": 1, "max_tokens": 4 * max_tokens}


def slow_bodies(slow: Json, model: str, text: str, scenario: Json) -> tuple[Json, Json]:
    """Return the request of a scenario, and those that run beside it, None for none."""
    common = {"model": model, "max_tokens": slow["max_tokens"], "seed": 1, "ignore_eos": True}
    mine = common | {"prompt": " ".join([text] * scenario["repeats"]), "explain": True}
    mine["return_token_ids"] = True
    company = [f"{index + 1} {text}" for index in range(scenario["others"])]
    return mine, common | {"prompt": company, "max_tokens": 2 * slow["max_tokens"]} if company else None


class _Recorder:
    """Asks a server what the lessons ask, and writes its answers."""

    def __init__(self, http: httpx.AsyncClient, folder: Path) -> None:
        self.num_answers = 0
        self._http = http
        self._folder = folder

    async def record_all(self, examples: Json) -> str:
        """Record the answers to all requests of the lessons, and return the name of the model."""
        found = (await self._http.get("/v1/models")).raise_for_status().json()
        model: str = found["data"][0]["id"]
        self._write("v1/models", None, {"data": [{"id": model}]})
        text, paging, batching, slow = (examples[name] for name in ("text", "paging", "batching", "slow"))
        for trace in await self._record_traces(text):
            await self._record_in_company(*seed_bodies(examples["same_seed"], trace), 0)
            await self._record_in_company(*seed_bodies(examples["same_seed"], trace), examples["same_seed"]["others"])
        prompts = [(await self._record("tokenize", tokenize_body(line)))["tokens"] for line in paging["lines"]]
        for block_size, pool in itertools.product(paging["block_sizes"], paging["pools"]):
            await self._record("v1/learn/simulate", paging_body(paging, prompts, block_size, pool))
        names, values = zip(*batching["choices"].items(), strict=True)
        for *chosen, waits_for_all in itertools.product(*values, [False, True]):
            body = batching_body(batching, dict(zip(names, chosen, strict=True)), waits_for_all=waits_for_all)
            await self._record("v1/learn/simulate", body)
        for scenario in slow["scenarios"]:
            await self._record_in_company(*slow_bodies(slow, model, text, scenario), scenario["others"])
        return model

    async def _record_in_company(self, mine: Json, company: Json, num_others: int) -> None:
        """Record the answer to a request alone, or beside others whose answers nobody reads."""
        asked = [company, mine] if num_others else [mine]
        *_, answer = await asyncio.gather(*(self._ask("v1/completions", body) for body in asked))
        (choice,) = answer["choices"]
        shown = {name: choice[name] for name in ("text", "token_ids")}
        kept = {"choices": [shown], "explanation": answer["explanation"]}
        self._write("v1/completions", mine, kept, num_others)
        if num_others:
            self._write("v1/completions", company, {})

    async def _record_traces(self, text: str) -> list[Json]:
        """Record the traces of all layers and heads; what they have in common is written once.

        Return those of the text, by itself and as a message.
        """
        body = {"text": text, "is_chat": False, "layer": 0, "head": 0}
        chat = await self._record("v1/learn/trace", body | {"is_chat": True})
        whole = await self._record("v1/learn/trace", body)
        for layer, head in itertools.product(range(whole["num_layers"]), range(whole["num_heads"])):
            if (layer, head) != (0, 0):
                other = body | {"layer": layer, "head": head}
                trace = await self._ask("v1/learn/trace", other)
                part = {name: value for name, value in trace.items() if value != whole[name]}
                self._write("v1/learn/trace", other, {"rest": name_of("v1/learn/trace", body), "part": part})
        return [one for one in (whole, chat) if "tokens" in one]  # a model without a chat template has the first

    async def _record(self, path: str, body: Json) -> Json:
        """Write the answer to a request, which can be the error of an impossible one, and return it."""
        answer = await self._ask(path, body)
        self._write(path, body, answer)
        return answer

    async def _ask(self, path: str, body: Json) -> Json:
        response = await self._http.post(f"/{path}", json=body)
        if response.status_code != 400:
            response.raise_for_status()
        return response.json()

    def _write(self, path: str, body: Json, answer: Json, beside: int = 0) -> None:
        text = json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        (self._folder / name_of(path, body, beside)).write_text(text, "utf-8")
        self.num_answers += 1


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


async def _record_site(url: str, folder: Path) -> int:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, trust_env=False) as http:
        return await write_site(http, folder)


def main(url: str, folder: Path) -> None:
    """Write a copy of the lessons with the answers of the server at a URL."""
    count = asyncio.run(_record_site(url, folder))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {count} answers, {size / 1e6:.1f} MB. Look at it: python3 -m http.server --directory {folder}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
