"""The chat page in a real browser: answers come from a script, hostile ones too, and once from a real model."""

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from borealis_gguf import api as converting

from ..helpers import browser as browsers
from ..helpers.browser import Watched, opened
from ..helpers.page_probes import ALLOWED, CONTRAST, DROP, HEARD, HOSTILE, RENDER, ROLES, UNCLOSED
from ..helpers.page_server import PageServer, Script, answer, delta, event, finish, serve
from ..helpers.paths import DATA
from ..helpers.serving import Serving, serving, until
from ..helpers.vision_models import SEEING

IMAGES = DATA / "images"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.started() as running:
        yield running


@pytest.fixture
def api() -> Iterator[PageServer]:
    with serve(PageServer()) as running:
        yield running


@pytest.fixture
def tab(browser: Browser, api: PageServer) -> Iterator[Watched]:
    with opened(browser, api.url) as page:
        yield page


def tags(tab: Watched) -> set[str]:
    return set(tab.script("[...document.querySelectorAll('#messages *')].map((node) => node.nodeName)"))


def assert_harmless(tab: Watched) -> None:
    """No element that is not ours, no handler in markup, no address that is not the web's, no code that ran."""
    assert tags(tab) <= ALLOWED
    names = tab.script("[...document.querySelectorAll('*')].flatMap((node) => node.getAttributeNames())")
    assert [name for name in names if name.startswith("on") or name in ("style", "srcdoc")] == []
    links = tab.script("[...document.querySelectorAll('#messages a')].map((node) => node.href)")
    assert [link for link in links if not link.startswith(("https://", "http://", "mailto:"))] == []
    pictures = tab.script("[...document.querySelectorAll('#messages img')].map((node) => node.src)")
    assert [source for source in pictures if not source.startswith("data:image/")] == []
    assert tab.script("window.hacked") is None


# Answers


def test_text_is_shown_while_it_is_written(api: PageServer, tab: Watched) -> None:
    gate = threading.Event()
    api.scripts = [Script([delta("Hei **på"), gate, delta(" deg** æøå"), *finish(tokens=3, total=12)])]
    tab.say("Hei")
    expect(tab.answer).to_have_text("Hei **på")
    expect(tab.at("#stop")).to_be_visible()
    gate.set()
    expect(tab.answer.locator("strong")).to_have_text("på deg")
    expect(tab.note).to_contain_text("3 tokener")
    expect(tab.note).to_contain_text("12 av 8\u00a0192 i konteksten")
    assert api.asked[0]["messages"] == [{"role": "user", "content": "Hei"}]
    assert (api.asked[0]["model"], api.asked[0]["stream"]) == ("borealis-4b", True)
    tab.say("Igjen")
    tab.done()
    assert [message["role"] for message in api.asked[1]["messages"]] == ["user", "assistant", "user"]


def test_markdown(api: PageServer, tab: Watched) -> None:
    text = (
        "## Fjord\n\nEn *vakker* **fjord** med `kode` og [lenke](https://example.org/a_b).\n\n"
        "1. én\n2. to\n   - inni\n\n> sitat\n\n| a | b |\n|:--|--:|\n| 1 | `x|` |\n\n```python\nprint('<b>')\n```\n"
    )
    api.scripts = [answer(text, size=3)]
    tab.say("Skriv")
    tab.done()
    expect(tab.answer.locator("h4")).to_have_text("Fjord")
    expect(tab.answer.locator("ol > li")).to_have_count(2)
    expect(tab.answer.locator("ol ul li")).to_have_text("inni")
    expect(tab.answer.locator("blockquote")).to_have_text("sitat")
    expect(tab.answer.locator("td.end")).to_have_count(1)
    expect(tab.answer.locator("pre code")).to_have_text("print('<b>')")
    link = tab.answer.locator("a")
    assert (link.get_attribute("href"), link.get_attribute("rel")) == ("https://example.org/a_b", "noopener noreferrer")
    growing = tab.answer.inner_html()
    tab.page.reload()
    assert tab.answer.inner_html() == growing  # written in pieces or drawn at once: the same


def test_stop(api: PageServer, tab: Watched) -> None:
    stops = (tab.at("#stop").click, lambda: tab.page.keyboard.press("Escape"))
    for number, stop in enumerate(stops):
        api.left.clear()
        api.scripts = [Script([delta(f"Det var {number}"), threading.Event()])]
        tab.say("Fortell")
        expect(tab.answer).to_have_text(f"Det var {number}")
        stop()
        expect(tab.note).to_contain_text("Stoppet.")
        assert api.left.wait(5)  # the server saw it
        expect(tab.answer).to_have_text(f"Det var {number}")
        assert tab.script("document.activeElement.id") == "input"


def test_an_answer_that_was_never_begun_can_be_stopped(api: PageServer, tab: Watched) -> None:
    api.scripts = [Script([threading.Event()])]
    tab.say("Hei")
    expect(tab.note).to_contain_text("Venter på svar")
    tab.page.keyboard.press("Escape")
    expect(tab.note).to_contain_text("Stoppet.")
    assert api.left.wait(5)
    tab.say("Og nå?")
    expect(tab.answer).to_contain_text("Og nå?")
    assert [message["role"] for message in api.asked[1]["messages"]] == ["user"]


def test_a_screen_reader_hears_an_answer_once(api: PageServer, tab: Watched) -> None:
    """That it begins, and all of it when it is whole; nothing while it grows, and nothing twice."""
    said = tab.at("#announcer p")
    assert tab.at("#announcer").evaluate("(node) => [node.role, node.ariaLive, node.textContent]") == [
        "log", "polite", "",
    ]  # fmt: skip
    tab.script(HEARD)
    gate = threading.Event()
    api.scripts = [Script([delta("Hei **på"), gate, delta(" deg**"), *finish()])]
    tab.say("Hei")
    expect(tab.answer).to_have_text("Hei **på")
    expect(said).to_have_text(["Borealis svarer."])
    expect(tab.at(".assistant")).to_have_attribute("aria-busy", "true")
    gate.set()
    tab.done()
    expect(said).to_have_text(["Borealis svarer.", "Borealis svarte: Hei på deg"])
    assert tab.at(".assistant").get_attribute("aria-busy") is None
    tab.say("Igjen")
    tab.done()
    expect(said).to_have_text(["Borealis svarer.", "Borealis svarte: Du skrev: Igjen"])
    heard = ["Borealis svarer.", "Borealis svarte: Hei på deg", "Borealis svarer.", "Borealis svarte: Du skrev: Igjen"]
    assert tab.script("window.heard") == heard
    tab.page.reload()
    expect(tab.answer).to_have_text("Du skrev: Igjen")
    expect(said).to_have_count(0)  # what was read before is not read again


PROBLEMS = {
    "in mid-stream": (
        Script([delta("Halv"), event({"error": {"message": "the engine died", "code": "engine_died"}})]),
        ("Serveren meldte en feil.", "the engine died"),
    ),
    "dropped": (Script([delta("Halv"), 0.3, "drop"]), ("Forbindelsen ble brutt før svaret var ferdig.",)),
    "ended early": (Script([delta("Halv")]), ("Forbindelsen ble brutt før svaret var ferdig.",)),
    "no JSON": (Script([delta("Halv"), b"data: {\n\n"]), ("Serveren meldte en feil.",)),
    "status 500": (Script(status=500, error="<b>oops</b>"), ("Serveren meldte en feil.", "<b>oops</b>")),
    "too long": (
        Script(status=400, error="the prompt is 9000 tokens, the context 8192; shorten it"),
        ("Samtalen er for lang for modellens kontekst.", "9000"),
    ),
}


def test_what_went_wrong_is_said_and_can_be_tried_again(api: PageServer, tab: Watched) -> None:
    for name, (script, texts) in PROBLEMS.items():
        api.asked.clear()
        api.scripts = [script]
        tab.at("#new").click()
        tab.say(name)
        for text in texts:
            expect(tab.at(".problem")).to_contain_text(text)
        if script.status == 200:
            expect(tab.answer).to_have_text("Halv")
        tab.at(".problem button").click()
        expect(tab.answer).to_have_text(f"Du skrev: {name}")
        expect(tab.at(".problem")).to_have_count(0)
        assert api.asked[1]["messages"] == [{"role": "user", "content": name}]


def test_a_busy_server_is_waited_for(api: PageServer, tab: Watched) -> None:
    api.scripts = [Script(status=429, headers={"Retry-After": "1"}, error="busy")]
    tab.say("Hei")
    expect(tab.note).to_contain_text("Serveren er opptatt. Prøver igjen om 1 s.")
    expect(tab.answer).to_have_text("Du skrev: Hei")
    api.scripts = [Script(status=429, headers={"Retry-After": "60"}, error="busy")]
    tab.say("Hei igjen")
    expect(tab.note).to_contain_text("s.")
    tab.page.keyboard.press("Escape")
    expect(tab.note).to_contain_text("Stoppet.")
    assert len(api.asked) == 3


def test_a_server_that_is_gone_and_comes_back(browser: Browser) -> None:
    with serve(PageServer()) as first, opened(browser, first.url) as tab:
        first.stop()
        tab.say("Er du der?")
        expect(tab.at(".problem")).to_contain_text("Får ikke kontakt med serveren.")
        expect(tab.at("#connection")).to_contain_text("Får ikke kontakt med serveren.")
        with serve(PageServer(), first.port):
            tab.at("#connection button").click()
            expect(tab.at("#connection")).to_be_empty()
            tab.at(".problem button").click()
            expect(tab.answer).to_have_text("Du skrev: Er du der?")


def test_a_model_that_is_being_loaded(browser: Browser) -> None:
    with serve(PageServer(loading=True)) as api, opened(browser, api.url) as tab:
        expect(tab.at("#connection")).to_contain_text("Modellen lastes inn.")
        api.loading = False
        expect(tab.at("#connection")).to_be_empty()  # by itself
        expect(tab.at("#model")).to_contain_text("borealis-4b")


def test_the_key_is_asked_for(browser: Browser) -> None:
    with serve(PageServer(key="hemmelig")) as api, opened(browser, api.url) as tab:
        field = tab.at("dialog[open] input")
        field.fill("feil")
        field.press("Enter")
        expect(tab.at("#connection")).to_contain_text("Serveren godtok ikke API-nøkkelen.")
        tab.at("#connection button").click()
        tab.at("dialog[open] input").fill("hemmelig")
        tab.at("dialog .strong").click()
        expect(tab.at("#model")).to_contain_text("borealis-4b")
        tab.say("Hei")
        expect(tab.answer).to_have_text("Du skrev: Hei")
        assert "hemmelig" not in tab.script("JSON.stringify(localStorage)")


# What nobody may do


def test_text_never_becomes_markup(api: PageServer, tab: Watched) -> None:
    for text in HOSTILE:
        api.scripts = [answer(text, size=7)]
        tab.say(text)
        tab.done()
        assert tab.at(".user .plain").last.text_content() == text
        assert_harmless(tab)
        shown = tab.answer.text_content() or ""
        for code in ("<img src=x onerror=hacked=1>", "<script>hacked=1</script>"):
            assert (code in text) == (code in shown) or "```" in text.split("\n")[0], text
    tab.page.reload()
    expect(tab.answer).to_be_visible()
    assert_harmless(tab)


def test_hostile_names_everywhere_else(api: PageServer, tab: Watched) -> None:
    bad = '<img src=x onerror="window.hacked=1">'
    api.scripts = [Script(status=500, error=bad)]
    tab.at("#open-settings").click()
    tab.at("#system").fill(bad)
    tab.page.keyboard.press("Escape")
    tab.say(bad)
    expect(tab.at(".problem .detail")).to_have_text(bad)
    expect(tab.at("#title")).to_have_text(bad)
    expect(tab.at("#conversations .name")).to_have_text(bad)
    tab.at(".system summary").click()
    expect(tab.at(".system p")).to_have_text(bad)
    assert_harmless(tab)
    tab.at("#conversations li").hover()
    tab.at("#conversations li .quiet").last.click()
    expect(tab.at("dialog.small")).to_contain_text(bad)
    assert_harmless(tab)


def test_pages_and_policy(tab: Watched) -> None:
    """Markup from text is refused by the browser even if the page asked for it."""
    for code in ("document.body.innerHTML = '<b>x</b>'", "eval('1')", "document.write('x')", "new Function('1')()"):
        tried = (
            f"new Promise((tell) => setTimeout(() => {{ try {{ {code}; tell('done') }} catch {{ tell('refused') }} }}))"
        )
        assert tab.script(tried) == "refused", code
    assert tab.script("fetch('https://example.org/').then(() => 'done', () => 'refused')") == "refused"
    assert tab.errors  # and said so
    tab.errors.clear()
    tab.asked[:] = [url for url in tab.asked if "example.org" not in url]


def test_no_text_takes_long_to_draw(tab: Watched) -> None:
    """100 kB of what is never closed, with and without line breaks."""
    slow = {}
    for piece in (*UNCLOSED, "a", "ab ", "[\n", "$$\n", "> \n", "- \n", "|\n", "1. \n", "```\n", "a|b\n-|-\n"):
        milliseconds, length = tab.script(RENDER, [piece, 100_000])
        if milliseconds > 4000:  # all take far less, and what takes time by the square takes far more
            slow[piece] = (milliseconds, length)
    assert slow == {}


def test_a_line_of_100_kilobytes(api: PageServer, tab: Watched) -> None:
    api.scripts = [answer("fjord" * 20_000, size=500)]
    began = time.monotonic()
    tab.say("Lang")
    tab.at("#input").fill("fortsatt brukbar")
    expect(tab.note).to_contain_text("200 tokener")
    assert time.monotonic() - began < 4
    assert tab.answer.text_content() == "fjord" * 20_000
    width = tab.script("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]


# What stays, and what changes


def test_a_reload_keeps_the_conversation(api: PageServer, tab: Watched) -> None:
    tab.say("Første")
    expect(tab.answer).to_have_text("Du skrev: Første")
    tab.done()
    api.scripts = [Script([delta("Halv"), threading.Event()])]
    tab.say("Andre")
    expect(tab.answer).to_have_text("Halv")
    tab.at("#input").fill("kladd")
    tab.page.reload()
    assert api.left.wait(5)
    expect(tab.at(".user .plain")).to_have_text(["Første", "Andre"])
    expect(tab.answer).to_have_text("Halv")
    expect(tab.note).to_contain_text("Svaret ble avbrutt før det var ferdig.")
    expect(tab.at("#input")).to_have_value("kladd")
    tab.note.get_by_role("button", name="Lag svaret på nytt").click()
    expect(tab.answer).to_have_text("Du skrev: Andre")


def test_conversations(api: PageServer, tab: Watched) -> None:
    tab.say("Om fjell")
    tab.done()
    tab.at("#new").click()
    api.scripts = [Script([delta("Sakte"), gate := threading.Event(), *finish()])]
    tab.say("Om hav")
    expect(tab.answer).to_have_text("Sakte")
    tab.at("#conversations .open").last.click()  # the answer goes on where it belongs
    expect(tab.answer).to_have_text("Du skrev: Om fjell")
    gate.set()
    expect(tab.at("#conversations .running")).to_have_count(0)
    tab.at("#conversations li").last.hover()
    tab.page.get_by_role("button", name="Gi «Om fjell» nytt navn").click()
    tab.at("dialog[open] input").fill("Fjell og vidde")
    tab.at("dialog[open] input").press("Enter")
    expect(tab.at("#title")).to_have_text("Fjell og vidde")
    tab.page.get_by_role("button", name="Slett «Fjell og vidde»").click()
    tab.at("dialog .strong").click()
    expect(tab.at("#conversations .name")).to_have_text(["Om hav"])
    expect(tab.answer).to_have_text("Sakte")
    tab.page.reload()
    expect(tab.at("#conversations .name")).to_have_text(["Om hav"])


def test_edit_and_delete(api: PageServer, tab: Watched) -> None:
    tab.say("Fjell")
    tab.done()
    tab.at(".user").get_by_role("button", name="Rediger").click()
    tab.at(".editor").fill("Fjord")
    tab.page.keyboard.press("Enter")
    expect(tab.answer).to_have_text("Du skrev: Fjord")
    tab.done()
    tab.at(".user").get_by_role("button", name="Rediger").click()
    tab.say("Noe annet")  # with the editor left open
    expect(tab.answer).to_have_text("Du skrev: Noe annet")
    expect(tab.at(".editor")).to_have_count(0)
    expect(tab.at(".user .plain")).to_have_text(["Fjord", "Noe annet"])
    tab.done()
    tab.at(".user").last.get_by_role("button", name="Slett meldingen").click()
    expect(tab.at(".message")).to_have_count(2)
    assert [len(body["messages"]) for body in api.asked] == [1, 1, 3]


def test_settings_are_what_is_asked_with(api: PageServer, tab: Watched) -> None:
    tab.at("#open-settings").click()
    tab.at("#system").fill("Svar på nynorsk.")
    tab.at("#temperature").fill("0,7")
    tab.at("#seed").fill("42")
    tab.at("#top_k").fill("mange")
    expect(tab.at("#top_k-wrong")).to_have_text("Skriv et heltall fra 0 til 1\u00a0000.")
    tab.at("#close-settings").click()
    tab.say("Hei")
    tab.done()
    body = api.asked[0]
    assert (body["temperature"], body["seed"], "top_k" in body) == (0.7, 42, False)
    assert body["messages"][0] == {"role": "system", "content": "Svar på nynorsk."}
    tab.at("#new").click()
    tab.say("Hei")
    tab.done()
    assert api.asked[1]["messages"] == [{"role": "user", "content": "Hei"}]  # nobody asked for it in all conversations
    tab.at("#open-settings").click()
    tab.at("#system").fill("Kort.")
    tab.at("#system-default").check()
    tab.at("#reset").click()
    tab.page.keyboard.press("Escape")
    tab.at("#new").click()
    tab.say("Hei")
    tab.done()
    assert api.asked[2]["messages"][0] == {"role": "system", "content": "Kort."}
    assert "temperature" not in api.asked[2]


def test_languages(browser: Browser, api: PageServer) -> None:
    words = {"nb": "Skriv en melding", "nn": "Skriv ei melding", "en": "Write a message"}
    with opened(browser, api.url, locale="nn-NO") as tab:
        expect(tab.at("#input")).to_have_attribute("placeholder", words["nn"])
        assert tab.script("document.documentElement.lang") == "nn"
        choose = "async (wanted) => (await import('/texts.js')).chooseLanguage(wanted)"
        for wanted, chosen in {"no": "nb", "de-DE nn": "nn", "en-GB nb": "en", "sv": "en", "": "en"}.items():
            assert tab.script(choose, wanted.split()) == chosen
    with opened(browser, api.url) as tab:
        tab.say("Hei")
        tab.done()
        for language in ("nn", "en", "nb", "nn"):
            tab.at("#language").select_option(language)
            expect(tab.at("#input")).to_have_attribute("placeholder", words[language])
        tab.page.reload()
        expect(tab.at("#new")).to_have_text("Ny samtale")
        expect(tab.at("#attach")).to_have_attribute("aria-label", "Legg ved bilete")


def test_every_language_has_every_word(tab: Watched) -> None:
    keys = tab.script(
        """async () => {
          const { TEXTS } = await import("/texts.js");
          const holes = (text) => (text.match(/\\{\\w+\\}/g) ?? []).sort().join();
          const all = Object.values(TEXTS).map((texts) => Object.entries(texts).map(([k, v]) => `${k} ${holes(v)}`));
          return all.map((one) => one.sort().join("\\n"));
        }"""
    )
    assert len(keys) == 3 and len(set(keys)) == 1 and len(keys[0].splitlines()) > 80


# Everyone can use it


def test_with_the_keyboard_alone(api: PageServer, tab: Watched) -> None:
    press = tab.page.keyboard.press
    assert tab.script("document.activeElement.id") == "input"
    tab.page.keyboard.type("Linje én")
    press("Shift+Enter")
    tab.page.keyboard.type("linje to")
    press("Enter")
    expect(tab.answer).to_contain_text("Du skrev: Linje én")
    tab.done()
    assert api.asked[0]["messages"][0]["content"] == "Linje én\nlinje to"
    tab.script("document.activeElement.blur()")
    seen = set()
    for _ in range(40):
        press("Tab")
        name, ring = tab.script(
            """(() => {
              const at = document.activeElement;
              const styles = [at, at.closest(".box") ?? at].map((node) => getComputedStyle(node));
              const ring = styles.some((style) => style.outlineStyle !== "none" || style.boxShadow !== "none");
              return [at.id || at.ariaLabel, ring];
            })()"""
        )
        assert ring or name is None, name  # one sees where one is
        seen.add(name)
    wanted = {"skip", "new", "language", "theme", "open-settings", "log", "input", "attach", "send"}
    assert wanted | {"Lag svaret på nytt", "Rediger og send på nytt", "Kopier meldingen", "Slett meldingen"} <= seen
    tab.at("#open-settings").focus()
    press("Enter")
    for _ in range(30):
        press("Tab")
        assert tab.script("!document.activeElement.closest('#stage, #sidebar')")  # not behind the dialog
    press("Escape")
    assert tab.script("document.activeElement.id") == "open-settings"
    expect(tab.at("dialog[open]")).to_have_count(0)


def nameless(tab: Watched) -> list[str]:
    """Roles and classes of what a screen reader could not tell."""
    session = tab.page.context.new_cdp_session(tab.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    told = [node for node in nodes if not node["ignored"] and node["role"]["value"] in ROLES]
    assert len(told) > 8
    return [str(node) for node in told if not node.get("name", {}).get("value", "").strip()]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_and_names(browser: Browser, api: PageServer, theme: str) -> None:
    text = "# A\n[b](https://example.org) `c`\n\n> d\n\n| e | f |\n|---|---|\n| g | h |\n\n```python\ni\n```\n$x$"
    api.scripts = [answer(text), Script(status=500, error="feil")]
    api.vision = False
    with opened(browser, api.url, color_scheme=theme) as tab:
        tab.say("Hei")
        tab.done()
        tab.say("Hei")
        expect(tab.at(".problem")).to_be_visible()
        tab.at("#attach").click()
        expect(tab.at("#notice")).not_to_be_empty()
        tab.at("#conversations li").hover()
        assert nameless(tab) == []
        found = tab.script(CONTRAST)
        tab.at("#open-settings").click()
        tab.at("#seed").fill("x")
        assert nameless(tab) == []
        found += tab.script(CONTRAST)
        tab.page.keyboard.press("Escape")
        dark = (
            sum(map(int, tab.script("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(","))) < 200
        )
        assert dark == (theme == "dark")
        tab.at("#theme").select_option("light" if theme == "dark" else "dark")
        found += tab.script(CONTRAST)
    assert len(found) > 100
    assert [(name, ratio) for name, ratio in found if ratio < 4.5] == []


def test_a_phone(browser: Browser, api: PageServer) -> None:
    with opened(browser, api.url, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True) as tab:
        tab.say("ignorert")  # Enter is a new line where there are only fingers
        tab.at("#send").tap()
        expect(tab.answer).to_contain_text("Du skrev: ignorert")
        tab.at("#open-menu").tap()
        expect(tab.at("#close-menu")).to_be_focused()
        assert tab.at("#open-menu").get_attribute("aria-expanded") == "true"
        tab.at("#new").tap()
        expect(tab.at("#sidebar")).not_to_be_visible()
        assert tab.script("document.documentElement.scrollWidth <= innerWidth")
        assert tab.script("document.querySelector('#skip').getBoundingClientRect().bottom") <= 0
        for width in (360, 320):
            tab.page.set_viewport_size({"width": width, "height": 640})
            tab.at("#open-settings").tap()
            wide = "[...document.querySelectorAll('dialog[open], dialog[open] *')].filter((n) => n.matches('dialog')"
            wide += " ? n.scrollWidth > n.clientWidth : n.getBoundingClientRect().right > innerWidth).map((n) => n.id)"
            assert tab.script(wide) == []
            tab.page.keyboard.press("Escape")
        small = tab.script(
            "[...document.querySelectorAll('button')].filter((b) => b.checkVisibility({visibilityProperty: true}))"
            ".map((b) => [b.id, b.getBoundingClientRect()]).filter(([, r]) => r.width < 24 || r.height < 24)"
        )
        assert small == []


# Pictures


def drop(tab: Watched, data: bytes, name: str, kind: str) -> None:
    tab.script(DROP, [base64.b64encode(data).decode(), name, kind])


def test_a_picture_that_is_dropped(api: PageServer, tab: Watched) -> None:
    data = (IMAGES / "exact.png").read_bytes()
    drop(tab, data, "fjord <b>.png", "image/png")
    expect(tab.at("#attached img")).to_have_attribute("alt", "fjord <b>.png")
    drop(tab, b"<svg onload='hacked=1'/>", "ond.svg", "image/svg+xml")
    expect(tab.at("#notice")).to_contain_text("ond.svg er ikke et bilde")
    tab.say("Hva er dette?")
    tab.done()
    picture, text = api.asked[0]["messages"][0]["content"]
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert picture == {"type": "image_url", "image_url": {"url": url}}
    assert text == {"type": "text", "text": "Hva er dette?"}
    expect(tab.at(".user img")).to_have_attribute("src", url)
    assert_harmless(tab)
    tab.page.reload()
    expect(tab.at(".user img")).to_have_attribute("src", url)


def test_a_model_that_cannot_see(api: PageServer, browser: Browser) -> None:
    api.vision = False
    with opened(browser, api.url) as tab:
        drop(tab, (IMAGES / "exact.png").read_bytes(), "fjord.png", "image/png")
        expect(tab.at("#notice")).to_contain_text("Modellen kan ikke se bilder.")
        expect(tab.at("#attached li")).to_have_count(0)


# All of it together


@pytest.fixture(scope="module")
def real(nano_q8: Path) -> Iterator[Serving]:
    with serving(nano_q8) as running:
        yield running


def test_with_a_real_model(real: Serving, browser: Browser) -> None:
    with opened(browser, f"http://127.0.0.1:{real.port}") as tab:
        expect(tab.at("#model")).to_contain_text("nano-nb-7m-Q8_0")
        tab.at("#open-settings").click()
        for name, value in {"temperature": "0", "max_tokens": "20", "top_k": "40", "top_p": "1", "seed": "2"}.items():
            tab.at(f"#{name}").fill(value)
        tab.page.keyboard.press("Escape")
        tab.say("Skriv om Norge.")
        tab.done()
        expect(tab.note).to_contain_text("i konteksten")
        asked: Any = [{"role": "user", "content": "Skriv om Norge."}]
        same = real.client.chat.completions.create(model="nano", messages=asked, temperature=0, max_tokens=20, seed=2)
        text = (same.choices[0].message.content or "").split()
        assert len(text) > 1 and (tab.answer.text_content() or "").split() == text
        tab.at("#open-settings").click()
        tab.at("#reset").click()
        tab.page.keyboard.press("Escape")
        tab.say("ord " * 20_000)
        expect(tab.at(".problem")).to_contain_text("Samtalen er for lang for modellens kontekst.")
        tab.at("#new").click()
        tab.say("Skriv langt om Norge.")
        expect(tab.answer).not_to_be_empty()
        tab.page.keyboard.press("Escape")
        until(lambda: real.stats().get("active", 0) == 0)


def test_a_picture_that_is_dropped_is_seen(browser: Browser, tmp_path: Path) -> None:
    """By a real model, a miniature that sees; it says what it says through the API."""
    plan, mmproj = converting.plan_quantize(SEEING[0].write(tmp_path), ["Q8_0"], tmp_path, mmproj="f16")
    converting.execute([plan, mmproj])
    data = (IMAGES / "exact.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with serving(plan.path) as running, opened(browser, f"http://127.0.0.1:{running.port}") as tab:
        expect(tab.at("#model")).to_contain_text(plan.path.stem)
        tab.at("#open-settings").click()
        for name, value in {"temperature": "0", "max_tokens": "8", "top_k": "40", "top_p": "1", "seed": "2"}.items():
            tab.at(f"#{name}").fill(value)
        tab.page.keyboard.press("Escape")
        drop(tab, data, "fjord.png", "image/png")
        expect(tab.at("#attached img")).to_be_visible()
        tab.say("Hva er dette?")
        tab.done()
        picture: Any = {"type": "image_url", "image_url": {"url": url}}
        parts: Any = [picture, {"type": "text", "text": "Hva er dette?"}]

        def said(content: Any) -> Any:
            asked: Any = [{"role": "user", "content": content}]
            return running.client.chat.completions.create(
                model=plan.path.stem, messages=asked, temperature=0, max_tokens=8, seed=2
            )

        seen, blind = said(parts), said("Hva er dette?")
        assert (tab.answer.text_content() or "").split() == (seen.choices[0].message.content or "").split() != []
        assert seen.usage.prompt_tokens > blind.usage.prompt_tokens + 4
        expect(tab.note).to_contain_text(f"{seen.usage.total_tokens} av")
