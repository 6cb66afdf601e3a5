"""The page in a real browser, with the embedded model and real files."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random
from time import monotonic, sleep

import pytest
from pdf import write_pdf
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from tiny_models import TinySpec

from icecache_local import embedded
from icecache_local.hidden_facts import build_text, draw_facts

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
FACTS = draw_facts(Random(8), 10)
IN_PDF, IN_TEXT, OTHER, EDITED = FACTS[0], FACTS[5], FACTS[3], FACTS[9]
WORDS = 18500  # of the long text: 30,000 tokens
COMMAND = "import sys; from icecache_local.cli import main; main(sys.argv[1:])"
SECONDS = 1000  # playwright counts in ms
LONGER = "n => document.querySelector('#ice-chat [data-testid=bot]').innerText.length > n"
READ = 100 * SECONDS  # the longest wait: a long text on a busy machine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt install chromium)")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Documents to drop."""
    folder = tmp_path_factory.mktemp("files")
    long = folder / "documentation.txt"
    text = build_text(Random(8), FACTS[1:], WORDS)
    long.write_text(text.replace(". ", ".\n").replace(" The secret", "\nThe secret"))
    pdf = write_pdf(
        folder / "letter.pdf",
        ["Dear reader, this is a letter.", embedded.statement(IN_PDF.name, IN_PDF.code)],
    )
    broken = folder / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4\n" + bytes(range(256)) * 4)
    return {
        "long": long,
        "pdf": pdf,
        "scan": write_pdf(folder / "scan.pdf", []),
        "broken": broken,
        "folder": folder,
    }


@pytest.fixture(scope="module")
def address(tmp_path_factory, tiny_model) -> Iterator[str]:
    """The page, opened by the command."""
    model = tiny_model(TinySpec("qwen3"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    chats = tmp_path_factory.mktemp("chats")
    options = ["--no-browser", "--port", str(port), "--chats", str(chats)]
    options += ["--library", str(tmp_path_factory.mktemp("library"))]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "ui", "--models", str(model.parent), *options],
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path_factory.mktemp("data"))},
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen) -> None:
    end = monotonic() + 60
    while monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            sleep(0.2)
    raise RuntimeError("the page did not open")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, address) -> Iterator[Page]:
    """One person's tab: the tests of this file are one visit, in their order."""
    context = browser.new_context(viewport=DESKTOP, accept_downloads=True)
    page = context.new_page()
    foreign, errors = [], []
    page.on("request", lambda r: foreign.append(r.url) if not _local(r.url, address) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, address)
    yield page
    context.close()
    assert not foreign, "something was loaded from elsewhere"
    assert not errors


def _local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def open_page(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#ice-head")).to_contain_text("tokens of context", timeout=20 * SECONDS)


def shoot(page: Page, name: str) -> None:
    """Keep a screenshot where ICECACHE_SCREENSHOTS says."""
    folder = os.environ.get("ICECACHE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(600)  # transitions
        page.screenshot(path=f"{folder}/{name}.png")


def drop(page: Page, path: Path) -> None:
    page.get_by_role("tab", name="Documents").click()
    page.locator("#ice-files input[type=file]").set_input_files(path)


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")


def answers(page: Page):
    return page.locator("#ice-chat .message.bot, #ice-chat .bot.message-row .message")


def expect_answer(page: Page, text: str | re.Pattern, n: int, timeout: float = READ) -> None:
    """Wait for the n-th answer (1 is the first) and for the end of the streaming."""
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(n, timeout=timeout)
    expect(page.locator("#ice-chat [data-testid=bot]").nth(n - 1)).to_contain_text(
        text, timeout=timeout
    )
    expect(page.get_by_test_id("submit-button")).to_be_visible(timeout=timeout)


def test_an_empty_page_says_what_to_do(page) -> None:
    expect(page.locator("#ice-chat")).to_contain_text("Drop documents")
    shoot(page, "start")


def test_the_plan_says_what_fits(page) -> None:
    page.get_by_role("button", name="Model").click()
    expect(page.locator(".ice-plan .verdict")).to_contain_text("Fits", timeout=10 * SECONDS)
    context = page.get_by_label("Context, tokens")
    context.fill("90000000")
    context.press("Tab")
    verdict = page.locator(".ice-plan .verdict")
    expect(verdict).to_contain_text(re.compile(r"Needs .* more; try a context of [\d,]+ tokens"))
    shoot(page, "model")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("lower n_ctx", timeout=20 * SECONDS)
    context.fill("65536")
    context.press("Tab")
    expect(verdict).to_contain_text("Fits")
    page.get_by_role("button", name="Model").click()


@pytest.mark.parametrize(
    "name, sentence", [("broken", "damaged or no PDF"), ("scan", "is a scan without text")]
)
def test_files_without_text_are_refused_in_a_sentence(page, files, name, sentence) -> None:
    drop(page, files[name])
    expect(page.get_by_role("alert")).to_contain_text(sentence, timeout=10 * SECONDS)
    expect(page.locator("#ice-documents")).not_to_contain_text(".pdf")


def test_a_pdf_answers(page, files) -> None:
    drop(page, files["pdf"])
    expect(page.locator("#ice-documents")).to_contain_text("letter.pdf", timeout=10 * SECONDS)
    ask(page, embedded.question(IN_PDF.name))
    expect_answer(page, IN_PDF.code, 1)


def test_reading_a_long_text_shows_progress_and_can_be_cancelled(page, files) -> None:
    drop(page, files["long"])
    progress = page.get_by_role("progressbar", name="Reading")
    expect(progress).to_be_visible(timeout=30 * SECONDS)
    expect(page.locator("#ice-reading")).to_contain_text("left")
    shoot(page, "reading")
    page.get_by_role("button", name="Cancel").click()
    expect(progress).to_be_hidden(timeout=30 * SECONDS)
    expect(page.locator("#ice-documents")).to_contain_text("documentation.txt")


def test_the_answer_to_a_long_text_is_right_and_its_passage_marked(page) -> None:
    ask(page, embedded.question(IN_TEXT.name))
    expect_answer(page, IN_TEXT.code, 2)
    statement = embedded.statement(IN_TEXT.name, IN_TEXT.code)
    best = page.locator(".ice-passages button").first
    expect(best).to_contain_text(statement, timeout=10 * SECONDS)
    mark = page.locator("mark.here")
    expect(mark).to_contain_text(statement)
    expect(mark).to_be_in_viewport()
    page.locator(".ice-passages button").nth(1).click()
    expect(page.locator("mark.here")).not_to_contain_text(statement)
    best.press("Enter")
    expect(mark).to_contain_text(statement)
    shoot(page, "looked-at")


def test_a_second_question_reads_nothing_again(page) -> None:
    ask(page, embedded.question(OTHER.name))
    expect_answer(page, OTHER.code, 3, timeout=15 * SECONDS)
    expect(page.locator("#ice-meters")).to_contain_text("Hit rate")


def test_regenerate_and_edit(page) -> None:
    before = page.locator("#ice-meters").inner_text()
    page.get_by_role("button", name="Regenerate").click()
    # The answer is the same; its speed is not, and comes with the last update.
    expect(page.locator("#ice-meters")).not_to_have_text(
        before, use_inner_text=True, timeout=20 * SECONDS
    )
    expect_answer(page, OTHER.code, 3, timeout=15 * SECONDS)
    page.locator("#ice-chat .user-row, #ice-chat .user").last.hover()
    page.get_by_role("button", name="Edit", exact=True).last.click()
    box = page.locator("#ice-chat textarea")
    box.fill(embedded.question(EDITED.name))
    page.get_by_role("button", name="Submit").first.click()
    expect_answer(page, EDITED.code, 3, timeout=15 * SECONDS)


def test_reload_keeps_the_chat(page, address) -> None:
    open_page(page, address)
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(3, timeout=10 * SECONDS)
    expect(page.locator("#ice-chat")).to_contain_text(EDITED.code)
    expect(page.locator("#ice-documents")).to_contain_text("documentation.txt")


def test_export_and_import(page, files) -> None:
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    path = files["folder"] / download.value.suggested_filename
    download.value.save_as(path)
    assert len(json.loads(path.read_text())["chat"]["turns"]) == 3
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(0, timeout=10 * SECONDS)
    page.locator("#ice-import").locator("xpath=..").locator("input[type=file]").set_input_files(
        path
    )
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(3, timeout=10 * SECONDS)
    expect(page.locator("#ice-chat")).to_contain_text(EDITED.code)


def test_chats_of_one_document_switch_without_reading(page) -> None:
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(0, timeout=10 * SECONDS)
    expect(page.locator("#ice-documents")).to_contain_text("documentation.txt")
    ask(page, embedded.question(IN_TEXT.name))
    expect_answer(page, IN_TEXT.code, 1, timeout=15 * SECONDS)
    page.locator("#ice-chats label").nth(1).click()
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(3, timeout=10 * SECONDS)


def test_a_chat_is_saved_opened_and_deleted(page) -> None:
    page.get_by_role("button", name="Saved on disk").click()
    page.get_by_label("Name", exact=True).fill("my book")
    page.get_by_role("button", name="Save this chat").click()
    expect(page.locator("#ice-notice")).to_contain_text("Saved as my book", timeout=READ)
    cost = page.locator("#ice-saved-cost")
    expect(cost).to_contain_text(re.compile(r"1 chat saved, [\d.]+ [KM]iB"))
    expect(cost).to_contain_text(re.compile(r"\d texts? in the library, "))
    shoot(page, "saved")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(0, timeout=10 * SECONDS)
    page.get_by_label("Saved chats and read texts").click()
    page.get_by_role("option", name=re.compile("^my book")).click()
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(3, timeout=30 * SECONDS)
    page.get_by_role("button", name="Delete …").click()
    expect(page.locator("#ice-saved-question")).to_contain_text("Delete my book")
    shoot(page, "saved-delete")
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#ice-saved-question")).to_be_hidden()
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Delete it").click()
    expect(cost).to_contain_text("0 chats saved", timeout=10 * SECONDS)
    page.get_by_role("button", name="Saved on disk").click()


def reach(page: Page, target: Locator) -> None:
    """Move the focus to `target` with the Tab key."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    pytest.fail("Tab never reaches it")


def test_keys_alone_ask_and_look_around(page, address) -> None:
    open_page(page, address)
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(3, timeout=10 * SECONDS)
    reach(page, page.get_by_label("Question"))
    page.keyboard.type(embedded.question(OTHER.name))
    page.keyboard.press("Enter")
    expect_answer(page, OTHER.code, 4, timeout=15 * SECONDS)
    reach(page, page.get_by_role("tab", selected=True).last)
    other = page.locator(".ice-passages button").nth(1)
    reach(page, other)
    page.keyboard.press("Enter")
    shown = other.inner_text().splitlines()[-1][:30]
    expect(page.locator("mark.here")).to_contain_text(shown)
    chats = page.locator("#ice-chats label")
    title = chats.filter(has=page.locator("input:checked")).inner_text()
    reach(page, page.get_by_role("button", name="New chat"))
    page.keyboard.press("Enter")
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(0, timeout=10 * SECONDS)
    chats.filter(has_text=title).click()
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(4, timeout=10 * SECONDS)


def test_a_phone_shows_the_chat_and_never_scrolls_sideways(browser, address, page) -> None:
    state = page.context.storage_state()
    context = browser.new_context(viewport=PHONE, has_touch=True, storage_state=state)
    phone = context.new_page()
    open_page(phone, address)
    expect(phone.get_by_label("Question")).to_be_in_viewport(timeout=10 * SECONDS)
    expect(phone.locator("#ice-side.open")).to_have_count(0)
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shoot(phone, "phone")
    phone.get_by_role("tab", name="What it looked at").tap()
    phone.locator("#ice-look").scroll_into_view_if_needed()
    shoot(phone, "phone-looked-at")
    context.close()


def test_dark_mode(browser, address, page) -> None:
    state = page.context.storage_state()
    context = browser.new_context(viewport=DESKTOP, color_scheme="dark", storage_state=state)
    dark = context.new_page()
    open_page(dark, address)
    expect(dark.locator("#ice-chat [data-testid=bot]")).to_have_count(4, timeout=10 * SECONDS)
    dark.get_by_role("tab", name="What it looked at").click()
    background = dark.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 60
    shoot(dark, "dark")
    context.close()


def test_stop_continue_and_a_waiting_tab(browser, address, page, tiny_model) -> None:
    """A random model that never ends its answer is stopped; another tab waits for it."""
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#ice-chat [data-testid=bot]")).to_have_count(0, timeout=10 * SECONDS)
    page.get_by_role("button", name="Model").click()
    path = tiny_model(TinySpec("qwen3"))
    page.get_by_label("GGUF file").fill(str(path))
    page.get_by_label("GGUF file").press("Enter")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#ice-head")).to_contain_text("random qwen3", timeout=30 * SECONDS)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer, tokens").fill("8000")
    clear_documents(page)
    ask(page, "Tell a story.")
    stop = page.get_by_test_id("stop-button")
    answer = page.locator("#ice-chat [data-testid=bot]")
    expect(answer).to_have_count(1, timeout=20 * SECONDS)
    second = browser.new_context(viewport=DESKTOP).new_page()
    open_page(second, address)
    ask(second, "Another one.")
    expect(second.locator("#ice-notice")).to_contain_text("yours comes next")
    expect(stop).to_be_visible()
    stop.click()
    expect(page.get_by_test_id("submit-button")).to_be_visible(timeout=10 * SECONDS)
    length = len(answer.inner_text())
    expect(second.locator("#ice-chat [data-testid=bot]")).to_have_count(1, timeout=20 * SECONDS)
    second.get_by_test_id("stop-button").or_(second.get_by_test_id("submit-button")).click()
    second.context.close()
    page.get_by_label("Longest answer, tokens").fill("40")
    page.get_by_role("button", name="Continue").click()
    # Not the stop button: forty tokens may be over before it is looked for.
    page.wait_for_function(LONGER, arg=length, timeout=20 * SECONDS)
    expect(page.get_by_test_id("submit-button")).to_be_visible(timeout=20 * SECONDS)
    expect(answer).to_have_count(1)


def test_an_answer_goes_on_behind_another_chat(page) -> None:
    """The next question of another chat waits, comes next, and neither shows in the other."""
    answer, stop = page.locator("#ice-chat [data-testid=bot]"), page.get_by_test_id("stop-button")
    page.get_by_label("Longest answer, tokens").fill("8000")
    page.get_by_role("button", name="Regenerate").click()
    expect(stop).to_be_visible(timeout=20 * SECONDS)
    length = len(answer.inner_text())
    page.get_by_role("button", name="New chat").click()
    expect(answer).to_have_count(0, timeout=10 * SECONDS)
    ask(page, "And you?")
    expect(page.locator("#ice-notice")).to_contain_text("yours comes next")
    page.wait_for_timeout(1 * SECONDS)  # the first one goes on meanwhile
    expect(page.locator("#ice-chat")).not_to_contain_text("Tell a story.")
    chats = page.locator("#ice-chats label")
    chats.filter(has_text="Tell a story.").click()
    expect(answer).to_have_count(1, timeout=10 * SECONDS)
    page.wait_for_function(LONGER, arg=length, timeout=20 * SECONDS)
    stop.click()
    expect(page.get_by_test_id("submit-button")).to_be_visible(timeout=10 * SECONDS)
    length = settled_length(page, answer)
    chats.filter(has_text="New chat").first.click()
    expect(page.locator("#ice-chat")).to_contain_text("And you?", timeout=10 * SECONDS)
    expect(answer).to_have_count(1, timeout=20 * SECONDS)
    stop.click()
    expect(page.get_by_test_id("submit-button")).to_be_visible(timeout=10 * SECONDS)
    expect(page.locator("#ice-chat")).not_to_contain_text("Tell a story.")
    chats.filter(has_text="Tell a story.").click()
    expect(answer).to_have_count(1, timeout=10 * SECONDS)
    assert settled_length(page, answer) == length


def settled_length(page: Page, answer: Locator) -> int:
    """Characters of an answer once it does not grow any more: the page lags behind the model."""
    before, length = -1, len(answer.inner_text())
    while length != before:
        page.wait_for_timeout(2 * SECONDS)
        before, length = length, len(answer.inner_text())
    return length


def test_a_chat_that_is_being_answered_can_be_deleted(page) -> None:
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_test_id("stop-button")).to_be_visible(timeout=20 * SECONDS)
    page.get_by_role("button", name="Delete", exact=True).click()
    chats = page.locator("#ice-chats label")
    expect(chats.filter(has_text="Tell a story.")).to_have_count(0, timeout=10 * SECONDS)
    page.get_by_role("button", name="New chat").click()
    answer = page.locator("#ice-chat [data-testid=bot]")
    expect(answer).to_have_count(0, timeout=10 * SECONDS)
    page.get_by_label("Longest answer, tokens").fill("20")
    ask(page, "Who is next?")
    expect(answer).to_have_count(1, timeout=20 * SECONDS)  # it did not have to wait long
    expect(page.get_by_test_id("submit-button")).to_be_visible(timeout=20 * SECONDS)
    expect(chats.filter(has_text="Tell a story.")).to_have_count(0)


def clear_documents(page: Page) -> None:
    page.get_by_role("tab", name="Documents").click()
    page.locator("#ice-documents button[title='Clear'], #ice-documents .remove-all").click()
    expect(page.locator("#ice-context")).to_contain_text(
        re.compile(r"^\s*Context\s*0 of"), timeout=5 * SECONDS
    )
