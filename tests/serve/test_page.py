"""The page for people: in headless Chromium, over real HTTP, against a made-up engine. No Ray, no model."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from clara_dist.config.http import AnswerReply, Health, LatentWord, RetrieveReply, Source, Timings
from clara_dist.distributed.serve_messages import AnswerEvent, Ask, Done, Found
from clara_dist.inference.engine import Piece
from http_server import serving as serving_backend

TIMINGS = Timings(queue=0.001, reason=0.02, retrieve=0.003, first_token=0.03, generate=0.4, total=0.424)
SOURCES = (
    Source(doc_id="d1", parent_id="d1", title="Merrow", score=0.91, text="The lighthouse was built in 1871."),
    Source(doc_id="d2", parent_id="d2", title="", score=0.5, text="<script>document.title = 'hacked'</script>"),
)
WORDS = (
    (
        LatentWord(text="built", probability=0.6, is_word=True, added=True),
        LatentWord(text="mer", probability=0.1, is_word=False, added=False),
    ),
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update")


class Engine:
    """Says "In 1871." in two pieces; between them it waits to be told to go on, or to be left."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.go_on = threading.Event()
        self.left = threading.Event()
        self.missing_shards = 0

    async def health(self) -> Health:
        return Health(model_version="abc", store_version=2, n_documents=4480)

    async def answer(self, ask: Ask) -> AnswerReply:
        raise AssertionError("the page streams")

    async def retrieve(self, question: str, top_k: int, where: str | None) -> RetrieveReply:
        raise AssertionError("not asked for here")

    async def stream(self, ask: Ask) -> AsyncGenerator[AnswerEvent, None]:
        import asyncio

        self.asked.append(ask)
        ended = False
        try:
            words = WORDS if ask.explain else ()
            yield Found(SOURCES, TIMINGS, 7, "abc", 2, words, self.missing_shards)
            yield Piece("In ", 1)
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
            yield Piece("1871.", 1, "stop")
            yield Done("stop", 2, TIMINGS)
            ended = True
        finally:
            if not ended:
                self.left.set()


@contextmanager
def serving(engine: Engine, keys: str = "") -> Iterator[str]:
    with serving_backend(engine, keys, model_name="lighthouse") as url:
        try:
            yield url
        finally:
            engine.go_on.set()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    for flag in (*FLAGS, "--window-size=1000,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def text(browser: webdriver.Chrome, name: str) -> str:
    return str(browser.find_element(By.ID, name).get_property("textContent")).strip()


def wait(browser: webdriver.Chrome, condition: Any) -> None:
    WebDriverWait(browser, 30).until(lambda _: condition())


def ask(browser: webdriver.Chrome, question: str) -> None:
    field = browser.find_element(By.ID, "question")
    field.clear()
    field.send_keys(question + Keys.ENTER)


@pytest.mark.browser
def test_an_answer_is_watched_as_it_comes(browser: webdriver.Chrome) -> None:
    engine = Engine()
    with serving(engine) as url:
        browser.get(url)
        wait(browser, lambda: "4,480 documents" in text(browser, "served"))
        browser.find_element(By.ID, "top-k").send_keys("2")
        ask(browser, "When was the lighthouse built?")
        wait(browser, lambda: text(browser, "answer") == "In")  # the first piece, while the engine still works
        assert browser.find_element(By.ID, "answer").get_attribute("aria-busy") == "true"
        assert [item.text.split("\n")[0] for item in browser.find_elements(By.CSS_SELECTOR, "#sources li")] == [
            "1. Merrow",
            "2. d2",
        ]
        engine.go_on.set()
        wait(browser, lambda: browser.find_element(By.ID, "answer").get_attribute("aria-busy") == "false")
        assert text(browser, "answer") == "In 1871."
        assert text(browser, "timings").endswith("retrieve 3 ms · generate 400 ms; first token after 54 ms")
        first, second = browser.find_elements(By.CSS_SELECTOR, "#sources li")
        marked = [(mark.text, mark.get_attribute("class")) for mark in first.find_elements(By.TAG_NAME, "mark")]
        assert marked == [("The", ""), ("lighthouse", ""), ("was", ""), ("built", ""), ("1871", "answered")]
        assert "cosine 0.910" in first.text
        # A document's text is text, whatever it looks like.
        assert "<script>" in second.text
        assert browser.title == "CLaRa"
        browser.find_element(By.TAG_NAME, "summary").click()
        assert [mark.text for mark in browser.find_elements(By.CSS_SELECTOR, "#words mark.added")] == ["built"]
        assert not browser.find_element(By.ID, "partial").is_displayed()
    (asked,) = engine.asked
    assert (asked.question, asked.top_k, asked.explain) == ("When was the lighthouse built?", 2, True)
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ] == []  # nor does its policy bite


@pytest.mark.browser
def test_who_stops_is_gone_at_the_engine_too(browser: webdriver.Chrome) -> None:
    engine = Engine()
    engine.missing_shards = 1
    with serving(engine) as url:
        browser.get(f"{url}/?q=When%3F")  # a link that asks
        wait(browser, lambda: text(browser, "answer") == "In")
        assert browser.find_element(By.ID, "partial").is_displayed()
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        assert engine.left.wait(30)
        wait(browser, lambda: browser.find_element(By.ID, "answer").get_attribute("aria-busy") == "false")
        assert (text(browser, "error"), text(browser, "timings")) == ("", "stopped")
    assert engine.asked[0].question == "When?"


@pytest.mark.browser
def test_errors_are_sentences_and_a_key_is_asked_for(browser: webdriver.Chrome) -> None:
    engine = Engine()
    engine.go_on.set()
    with serving(engine, keys="secret") as url:
        browser.get(url)
        wait(browser, lambda: "missing or unknown API key" in text(browser, "error"))
        browser.find_element(By.ID, "key").send_keys("secret")
        ask(browser, "When?")
        wait(browser, lambda: text(browser, "answer") == "In 1871.")
        assert text(browser, "error") == ""
        browser.find_element(By.ID, "top-k").send_keys("99")
        ask(browser, "When?")
        wait(browser, lambda: "top_k: 99 documents, at most 20" in text(browser, "error"))
    ask(browser, "And now?")
    wait(browser, lambda: text(browser, "error") == "The server cannot be reached.")


@pytest.mark.browser
def test_it_fits_a_phone(browser: webdriver.Chrome) -> None:
    engine = Engine()
    engine.go_on.set()
    with serving(engine) as url:
        metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(f"{url}/?q=When%3F")
        wait(browser, lambda: text(browser, "answer") == "In 1871.")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_its_files_need_no_key_and_run_nothing_from_elsewhere() -> None:
    with serving(Engine(), keys="secret") as url, httpx.Client(base_url=url, trust_env=False) as http:
        for path, kind in (("/", "text/html"), ("/page/style.css", "text/css"), ("/page/script.js", "text/javascript")):
            response = http.get(path)
            assert (response.status_code, response.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
            assert "script-src 'self'; style-src 'self';" in response.headers["content-security-policy"]
            assert "http://" not in response.text
            assert "https://" not in response.text
        assert http.get("/page/other").status_code == 401
        assert http.get("/v1/models").status_code == 401
