"""Parts of the lessons that need no browser: the distribution is the sampler's, and code is found in our files."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.sampling.truncation import kept_tokens
from caravan.server.learn.simulation import simulate
from caravan.server.learn.simulation_protocol import SimulateRequest
from caravan.server.operations.source_code import source_code_router
from docs.learn_site import (
    batching_body,
    examples,
    modules,
    name_of,
    paging_body,
    seed_bodies,
    slow_bodies,
    tokenize_body,
)
from tests.support.javascript import NEEDS_NODE, run_module

MAX_WORDS = 300  # to read at a stop, its question and its explanation included

SAMPLING: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.5},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.95, "min_p": 0.05},
]


@NEEDS_NODE
@pytest.mark.parametrize("sampling", SAMPLING)
def test_the_distribution_of_the_page_is_that_of_the_sampler(tmp_path: Path, sampling: dict[str, Any]) -> None:
    logits = np.random.default_rng(3).normal(0, 3, 256).astype(np.float32)
    params = SamplingParams(seed=0, max_tokens=1, **sampling)
    weights = np.exp((logits - logits.max()) / np.float32(params.temperature))
    kept = kept_tokens(weights, params, float(weights.sum()))
    names = {"topK": params.top_k, "topP": params.top_p, "minP": params.min_p}
    program = (
        'import { probabilities, truncated } from "./learn/distribution.js";\n\n'
        "return Array.from(truncated(probabilities(given.logits, given.temperature), given.limits));"
    )
    given = {"logits": logits.tolist(), "temperature": params.temperature, "limits": names}
    found = np.array(run_module(tmp_path, program, given))
    assert np.flatnonzero(found).tolist() == kept.tolist()
    np.testing.assert_allclose(found[kept], weights[kept] / weights[kept].sum(), rtol=1e-5)


@NEEDS_NODE
def test_the_code_of_every_stop_is_in_a_file_that_is_served_with_the_lines_that_are_marked(tmp_path: Path) -> None:
    codes = run_module(tmp_path, 'import { STOPS } from "./learn/stops.js";\n\nreturn STOPS.map(({ code }) => code);')
    assert len(codes) == 14
    app = FastAPI()
    app.include_router(source_code_router())
    for code in codes:
        code["text"] = TestClient(app).get(f"/web/code/{code['file']}").text
    program = (
        'import { functionIn } from "./learn/source.js";\n\n'
        "return given.map(({ text, symbol }) => functionIn(text, symbol));"
    )
    for code, found in zip(codes, run_module(tmp_path, program, codes), strict=True):
        lines = code["text"].splitlines()
        name = code["symbol"].rpartition(".")[2]
        assert found[0]["text"].startswith(f"def {name}(")
        for line in found:
            assert lines[line["number"] - 1].endswith(line["text"])
        assert not any('"""' in line["text"] for line in found)
        assert any(line["text"].strip().startswith("return") for line in found)
        for mark in code["marks"]:
            assert any(mark in line["text"] for line in found), (code["symbol"], mark)


@NEEDS_NODE
def test_nothing_of_a_token_is_invisible(tmp_path: Path) -> None:
    program = 'import { visible } from "./learn/token_strip.js";\n\nreturn given.map(visible);'
    texts = [" a b", "\n", "", "\u00a0", "a\tb", "\u200d", "\u00e9\U0001f600"]
    shown = ["\u00b7a\u00b7b", "\u21b5", "\u2205", "U+00A0", "aU+0009b", "U+200D", "\u00e9\U0001f600"]
    assert run_module(tmp_path, program, texts) == shown


@NEEDS_NODE
def test_the_hash_of_tokens_is_fnv_1a(tmp_path: Path) -> None:
    program = 'import { hashOfTokens } from "./learn/fnv.js";\n\nreturn given.map(hashOfTokens);'
    empty, one, other = run_module(tmp_path, program, [[], [1], [2]])
    assert empty == "cbf29ce484222325"  # the offset basis
    hash_of_one = 0xCBF29CE484222325
    for byte in (1, 0, 0, 0):
        hash_of_one = (hash_of_one ^ byte) * 0x100000001B3 % 2**64
    assert one == f"{hash_of_one:016x}"
    assert other != one


@NEEDS_NODE
def test_habits_and_the_layer_of_decision_are_read_from_the_numbers(tmp_path: Path) -> None:
    program = (
        'import { habitOf } from "./learn/habits.js";\nimport { decidedAfter } from "./learn/lens.js";\n\n'
        "return [given.habits.map(habitOf), given.lenses.map(decidedAfter)];"
    )
    lenses = [[[{"id": token_id}] for token_id in ids] for ids in ([1, 2, 1, 1], [3], [1, 1, 2])]
    habits = [[0.9, 0.1, None], [0.51, 0.6, 0.2], [0.2, 0.2, 0.55], [0.5, None, None]]
    assert run_module(tmp_path, program, {"habits": habits, "lenses": lenses}) == [
        ["first", "previous", "same", "other"],
        [2, 0, 2],
    ]


@NEEDS_NODE
def test_the_code_of_every_stop_of_the_reading_is_served_and_has_the_lines_that_are_marked(tmp_path: Path) -> None:
    program = (
        'import { fileQuestion, READING } from "./learn/reading_stops.js";\n\n'
        "return READING.map(({ code }, index) => ({ ...code, question: fileQuestion(index) }));"
    )
    stops = run_module(tmp_path, program)
    app = FastAPI()
    app.include_router(source_code_router())
    for stop in stops:
        response = TestClient(app).get(f"/web/code/{stop['file']}")
        assert response.status_code == 200, stop["file"]
        stop["text"] = response.text
        options = stop["question"]["options"]
        assert len({*options}) == 3
        assert options[stop["question"]["answer"]] == stop["file"]
    program = (
        'import { functionIn } from "./learn/source.js";\n\n'
        "return given.map(({ text, symbol }) => functionIn(text, symbol));"
    )
    for stop, found in zip(stops, run_module(tmp_path, program, stops), strict=True):
        for mark in stop["marks"]:
            assert any(mark in line["text"] for line in found), (stop["symbol"], mark)


@NEEDS_NODE
def test_the_fourteen_stops_are_short_to_read(tmp_path: Path) -> None:
    program = (
        'import { STOPS } from "./learn/stops.js";\n\n'
        'const texts = (code) => code.match(/"[^"\\n]*"|`[^`]*`/g) ?? [];\n'
        "return STOPS.map(({ name, title, text, question, after }) =>\n"
        "  [name, [title, text, ...texts(String(question)), ...texts(String(after))]]);"
    )
    stops = run_module(tmp_path, program)
    assert len({name for name, _ in stops}) == len(stops) == 14
    for name, (title, text, *others) in stops:
        assert title
        assert text.endswith("."), name
        words = " ".join([title, text, *others]).split()  # more than are shown: each text for a case counts
        assert 10 < len(words) <= MAX_WORDS, (name, len(words))


@NEEDS_NODE
def test_the_recorder_asks_what_the_lessons_ask(tmp_path: Path) -> None:
    given = examples()
    text, paging, batching, slow = (given[name] for name in ("text", "paging", "batching", "slow"))
    prompts = [[1, 2, 3], [4]]
    trace = {"model": "m", "tokens": [{"id": 5, "text": "a"}, {"id": 6, "text": "b"}]}
    bodies = [
        tokenize_body('caf\u00e9 "\n'),
        paging_body(paging, prompts, 16, 96),
        batching_body(batching, batching["chosen"], waits_for_all=True),
        *slow_bodies(slow, "m", text, slow["scenarios"][0]),
        *slow_bodies(slow, "m", text, slow["scenarios"][2]),
        *seed_bodies(given["same_seed"], trace),
    ]
    beside = [0, 0, 0, 0, 0, 31, 0, 31, 0]
    program = (
        'import { batchingBody, pagingBody, seedBodies, slowBodies, tokenizeBody } from "./learn/bodies.js";\n'
        'import { EXAMPLES } from "./learn/examples.js";\nimport { nameOf } from "./learn/recorded.js";\n\n'
        "const { batching, slow, same_seed: { sampling, seed } } = EXAMPLES;\n"
        "const both = ({ mine, company }) => [mine, company];\n"
        'const bodies = [tokenizeBody("caf\u00e9 \\"\\n"),\n'
        "  pagingBody(given.prompts, { blockSize: 16, pool: 96 }), batchingBody(batching.chosen, batching, true),\n"
        '  ...both(slowBodies("m", EXAMPLES.text, slow.scenarios[0])),\n'
        '  ...both(slowBodies("m", EXAMPLES.text, slow.scenarios[2])),\n'
        "  ...both(seedBodies(given.trace, sampling, seed))];\n"
        "return [bodies, bodies.map((body, index) => nameOf(body ? 'path' : 'other', body, given.beside[index]))];"
    )
    assert len(beside) == len(bodies)
    assert run_module(tmp_path, program, {"prompts": prompts, "trace": trace, "beside": beside}) == [
        bodies,
        [name_of("path" if body else "other", body, count) for body, count in zip(bodies, beside, strict=True)],
    ]


def test_the_answer_to_a_request_beside_others_is_not_the_one_to_the_request_alone() -> None:
    given = examples()
    alone, _, crowded = given["slow"]["scenarios"]
    assert (alone["others"], crowded["others"]) == (0, 31)
    bodies = [slow_bodies(given["slow"], "m", "a text", one)[0] for one in (alone, crowded)]
    assert bodies[0] == bodies[1]  # the same request: so its answer must be the same, but not its times
    names = [name_of("v1/completions", bodies[0], one["others"]) for one in (alone, crowded)]
    assert names[0] != names[1]


def test_the_copy_has_every_module_that_its_lessons_import() -> None:
    found = modules("learn/site.js")
    assert {"learn/view.js", "learn/kill.js", "chat/timing_part.js", "shell/key_dialog.js", "nodes.js"} <= found
    assert not any(name.startswith(("vendor/", "engine/")) or name == "main.js" for name in found)


@NEEDS_NODE
def test_the_spans_of_requests_are_those_of_the_simulation(tmp_path: Path) -> None:
    requests = [
        {"prompt": [1], "max_tokens": 12},
        {"prompt": [2], "max_tokens": 12},
        {"prompt": [3], "max_tokens": 1, "step": 3},
    ]
    body = SimulateRequest.model_validate(
        {"requests": requests, "num_blocks": 5, "block_size": 4, "max_num_seqs": 2, "step_ms": 10, "token_ms": 1}
    )
    simulation = json.loads(msgspec.json.encode(simulate(body)))
    program = (
        'import { spansOf, summaryOf } from "./learn/spans.js";\n\n'
        "const lives = spansOf(given, [0, 0, 3]);\nreturn [lives, summaryOf(given, lives)];"
    )
    lives, summary = run_module(tmp_path, program, simulation)
    assert [len(life["tokens"]) for life in lives] == [12, 12, 1]
    assert [span["kind"] for span in lives[0]["spans"]] == ["prompt", "answer"]
    assert [span["kind"] for span in lives[1]["spans"]] == ["prompt", "answer", "lost", "answer"]
    assert lives[2]["spans"][0]["kind"] == "queue"
    assert lives[2]["arrived"] == simulation["steps"][3]["start_ms"]
    for life in lives:
        assert all(span["to"] == later["from"] for span, later in pairwise(life["spans"]))
    lost = lives[1]["spans"][2]
    assert summary["longestPause"] >= lost["to"] - lost["from"]
    assert summary["total"] == simulation["steps"][-1]["end_ms"]
    assert summary["tokensASecond"] == pytest.approx(25_000 / summary["total"])
