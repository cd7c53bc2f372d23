"""Texts that try to be more than text: from the model, the server, its names, and imported files."""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.web.fake_server import Answer, FakeServer
from tests.server.web.open_page import ask, open_page, reload_when_saved
from tests.support.browser_page import SLOW_BROWSER
from tests.support.extent import extent

pytestmark = SLOW_BROWSER

HIT = "window.hit=1"
ELSEWHERE = "https://elsewhere.example"
TEXTS = [
    # Elements and handlers.
    f"<script>{HIT}</script>",
    f"<SCRIPT SRC={ELSEWHERE}/x.js></SCRIPT>",
    f"<img src=x onerror={HIT}>",
    f"<img src={ELSEWHERE}/a.png>",
    f"<svg onload={HIT}>",
    f"<svg><script>{HIT}</script></svg>",
    f"<svg><animate onbegin={HIT} attributeName=x dur=1s>",
    f"<svg><a xlink:href=javascript:{HIT}><text y=9>x</text></a></svg>",
    f"<iframe src=javascript:{HIT}></iframe>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    f"<object data=javascript:{HIT}></object>",
    f"<embed src={ELSEWHERE}/x.swf>",
    f"<body onload={HIT}>",
    f"<video><source onerror={HIT}></video>",
    f"<audio src=x onerror={HIT}>",
    f"<details open ontoggle={HIT}>x</details>",
    f"<input autofocus onfocus={HIT}>",
    f"<button formaction=javascript:{HIT}>x</button>",
    f"<form action={ELSEWHERE}><input name=key></form>",
    f"<base href={ELSEWHERE}/>",
    f"<meta http-equiv=refresh content='0;url={ELSEWHERE}'>",
    f"<link rel=stylesheet href={ELSEWHERE}/a.css>",
    f"<style>@import '{ELSEWHERE}/a.css'; * {{ display: none }}</style>",
    f"<div style='background:url({ELSEWHERE}/a.png)'>x</div>",
    f"<template><script>{HIT}</script></template>",
    f"<math><mtext><script>{HIT}</script></mtext></math>",
    f"<noscript><p title='</noscript><img src=x onerror={HIT}>'>",
    f"<x-caravan onclick={HIT}>x</x-caravan>",
    f"<marquee onstart={HIT}>x</marquee>",
    f"<!--><img src=x onerror={HIT}>-->",
    f"</div></main></body><script>{HIT}</script>",
    f"\n\n<div>\n<script>{HIT}</script>\n</div>\n\n",
    f"&lt;script&gt;{HIT}&lt;/script&gt;",
    f"&#60;img src=x onerror={HIT}&#62;",
    # Links and images.
    f"[x](javascript:{HIT})",
    f"[x](JaVaScRiPt:{HIT})",
    f"[x](java&#x0A;script:{HIT})",
    f"[x](&#106;avascript:{HIT})",
    f"[x](  javascript:{HIT})",
    f"[x](\x01javascript:{HIT})",
    f"[x](vbscript:{HIT})",
    f"[x](data:text/html,<script>{HIT}</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD53aW5kb3cuaGl0PTE8L3NjcmlwdD4=)",
    f"[x](blob:{ELSEWHERE}/1)",
    "[x](file:///etc/passwd)",
    "[x](/v1/engine/events)",
    "[x](#engine)",
    "[x](//elsewhere.example)",
    f"<javascript:{HIT}>",
    f"![x](javascript:{HIT})",
    f"![x]({ELSEWHERE}/a.png)",
    f'![x](x"onerror="{HIT})',
    f'[x]({ELSEWHERE}/ "x\\" onmouseover=\\"{HIT}")',
    f"[x]: javascript:{HIT}\n\n[x]",
    f"[![x]({ELSEWHERE}/a.png)](javascript:{HIT})",
    # Code, tables, lists, formulas.
    f"```<img src=x onerror={HIT}>\n<script>{HIT}</script>\n```",
    f"```html\n<script>{HIT}</script><img src=x onerror={HIT}>\n```",
    '```js" onclick="window.hit=1\nx\n```',
    f"`<img src=x onerror={HIT}>`",
    f"| <img src=x onerror={HIT}> | b |\n|--|--|\n| <script>{HIT}</script> | d |",
    f"- [x] <img src=x onerror={HIT}>",
    f"$\\href{{javascript:{HIT}}}{{x}}$",
    f"$\\href{{{ELSEWHERE}}}{{x}}$ $\\url{{{ELSEWHERE}}}$",
    f"$\\includegraphics{{{ELSEWHERE}/a.png}}$",
    "$\\class{message}{x} \\id{messages}{x} \\style{position:fixed}{x}$",
    f"$\\data{{x={HIT}}}{{x}}$ $\\text{{<img src=x onerror={HIT}>}}$",
    "$$\\def\\a{\\a\\a}\\a$$",
    "$\\rule{9999em}{9999em}$",
    # Sizes and odd characters.
    "> " * 500 + "deep",
    "- " * 300 + "deep",
    "[" * 2000 + "x",
    "*" * 3000,
    "\u202e\u2066reversed\u0000 \ufeff\ud7ff",
    "__proto__ constructor toString",
]

CHECK = """() => {
    const wrong = [];
    if (window.hit !== undefined) wrong.push("a script ran");
    const forbidden = "script, iframe, object, embed, img, svg, style, link, base, meta, video, audio, template";
    const found = [...document.body.querySelectorAll(`${forbidden}, #messages form`)];
    wrong.push(...found.map((node) => node.outerHTML.slice(0, 200)));
    for (const node of document.body.querySelectorAll("*")) {
        for (const { name, value } of node.attributes) {
            if (name.startsWith("on")) wrong.push(`${name}=${value}`);
            if (name === "style" && node.closest("#messages") && /url|fixed/.test(value)) wrong.push(value);
        }
        if (node.parentElement.closest("#messages") && node.id) wrong.push(`an id in a message: ${node.id}`);
        if (!(node instanceof HTMLAnchorElement) || !node.closest("#messages")) continue;
        if (!["http:", "https:", "mailto:"].includes(node.protocol)) wrong.push(node.outerHTML.slice(0, 200));
        if (node.origin === location.origin || !node.rel.includes("noopener")) wrong.push(node.outerHTML.slice(0, 200));
    }
    const width = document.querySelector("#scroller");
    if (width && width.scrollWidth > width.clientWidth + 1) wrong.push(`sideways scroll: ${width.scrollWidth}`);
    return wrong;
}"""


@pytest.fixture
def page(browser: Browser, fake: FakeServer) -> Iterator[Page]:
    with open_page(browser, fake) as page:
        elsewhere: list[str] = []
        page.on("request", lambda sent: None if sent.url.startswith(fake.url) else elsewhere.append(sent.url))
        yield page
        assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []
        assert page.url.startswith(fake.url)
        assert len(page.context.pages) == 1


def settled(page: Page) -> list[str]:
    """Return what is wrong with the page when formulas and colours are there."""
    page.wait_for_timeout(300)
    wrong: list[str] = page.evaluate(CHECK)
    return wrong


def test_the_list_is_long_enough() -> None:
    assert len(set(TEXTS)) >= 60


def some_texts(first: int) -> list[str]:
    """Return all texts, or by default every third from the given one on: each place has another third."""
    return TEXTS[first :: extent(1, 3)]


def test_answers_and_thoughts_of_a_model_change_nothing(page: Page, fake: FakeServer) -> None:
    texts = some_texts(0)
    for number, text in enumerate(texts, 1):
        fake.answers = [Answer([text[: len(text) // 2], text[len(text) // 2 :]], thoughts=[text])]
        ask(page, text.replace("\n", " ").replace("\0", "").strip())
        expect(page.locator(".message.assistant")).to_have_count(number)
        expect(page.locator(".message.assistant").last).to_have_attribute("aria-busy", "false")
        if number % 10 == 0 or number == len(texts):
            assert settled(page) == [], texts[number - 10 : number]
    reload_when_saved(page)
    expect(page.locator(".message.assistant")).to_have_count(len(texts))
    assert settled(page) == []
    for part in ("Tokens", "Timing"):
        page.locator(".message.assistant").first.locator("button", has_text=part).click()
        assert settled(page) == []


def test_errors_of_a_server_change_nothing(page: Page, fake: FakeServer) -> None:
    fake.answers = [Answer(status=400, error={"message": text, "code": text}) for text in some_texts(1)]
    for number in range(1, len(fake.answers) + 1):
        ask(page, "Hi")
        expect(page.locator(".message.assistant .notice.error")).to_have_count(number)
    assert settled(page) == []


def test_names_of_models_change_nothing(browser: Browser, fake: FakeServer) -> None:
    fake.models = TEXTS
    with open_page(browser, fake) as page:
        expect(page.locator("#model-chip")).to_contain_text("512 tokens")
        page.click("#model-chip")
        expect(page.locator("#set-model option")).to_have_count(len(TEXTS))
        assert settled(page) == []
        for text in TEXTS[: 40 : extent(4, 10)]:
            page.evaluate("text => localStorage.setItem('settings', JSON.stringify({model: text}))", text)
            page.reload()
            expect(page.locator(".welcome h2")).to_contain_text("Chat with ")
            assert page.locator(".welcome h2").evaluate("node => node.textContent") == f"Chat with {text}"
            assert settled(page) == []


def test_imported_conversations_change_nothing(page: Page) -> None:
    def message(number: int, role: str, parent: str | None, text: str) -> dict[str, object]:
        token = {"token": text, "logprob": -0.1, "top": [{"token": text, "logprob": -0.1}]}
        facts: dict[str, object] = {
            "facts": text,
            "thought": text,
            "end": {"kind": "error", "text": text},
            "request": {text: text},
        }
        facts |= {"tokens": [token], "__proto__": {"hit": 1}}
        written: dict[str, object] = {"id": f"{role}{number}", "role": role, "parent": parent, "content": text}
        return written | {"html": text} | (facts if role == "assistant" else {})

    texts = some_texts(2)
    conversations = [
        {
            "title": text,
            "system": text,
            "leaf": f"assistant{number}",
            "messages": [message(number, "user", None, text), message(number, "assistant", f"user{number}", text)],
        }
        for number, text in enumerate(texts)
    ]
    content = json.dumps({"format": "caravan-conversations", "version": 1, "conversations": conversations})
    page.evaluate(
        """async (text) => {
            const { imported } = await import("/web/chat/transfer.js");
            const { openStore } = await import("/web/chat/conversation_store.js");
            const store = openStore();
            for (const { conversation, messages } of imported(text)) await store.save(conversation, messages);
        }""",
        content,
    )
    page.reload()
    expect(page.locator("#conversations a")).to_have_count(len(texts))
    for number in range(len(texts)):
        link = page.locator("#conversations a").nth(number)
        link.evaluate("node => node.click()")
        expect(link).to_have_attribute("aria-current", "true")
        expect(page.locator(".message")).to_have_count(2)
        if number % 10 == 0:
            assert settled(page) == []
    assert page.evaluate("({}).hit") is None
