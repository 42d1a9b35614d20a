"""The web page in a real Chromium: against `glm serve` with the embedded model, and against scripted models where timing matters."""

import json
import os
import re
import signal

import pytest

pytestmark = pytest.mark.page

WEATHER = json.dumps(
    {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    }
)


def ask(page, text):
    page.fill("#message", text)
    page.keyboard.press("Enter")


def finished(page, number=1):
    """The last answer, once there are `number` and none runs."""
    page.wait_for_function(
        "n => document.querySelectorAll('.turn.answer').length >= n && !document.querySelector('.turn.answer.running')", arg=number
    )
    return page.locator(".turn.answer").last


def open_settings(page):
    page.get_by_role("button", name="Settings").click()
    return page.locator(".settings")


def stored(page, area="localStorage"):
    return page.evaluate(f"() => JSON.stringify({area})")


def test_a_chat_with_folded_thoughts_and_figures(open_page, nano_url, picture):
    page = open_page(nano_url)
    page.wait_for_selector(".model-name:text('glm-nano')")
    assert page.evaluate("document.activeElement.id") == "message"
    ask(page, "What is 34 + 57?")
    answer = finished(page)
    assert "91" in answer.locator(".markdown").last.inner_text()
    toggle = answer.locator(".thoughts-toggle")
    assert re.match(r"Thought for [\d.]+ s", toggle.inner_text())
    body = answer.locator(".thoughts-body")
    assert toggle.get_attribute("aria-expanded") == "false" and body.is_hidden()
    toggle.click()
    assert toggle.get_attribute("aria-expanded") == "true" and "34" in body.inner_text()
    figures = answer.locator(".figures").inner_text()
    for figure in ("tok/s", "first token", "drafts right", " in", " out"):
        assert figure in figures
    assert re.fullmatch(r"\s*\d+ / 4,096", page.locator(".context").inner_text())
    assert page.locator("[aria-live]").first.inner_text() == "Answer complete."
    ask(page, "What is 12 + 30?")
    assert "cached" in finished(page, 2).locator(".figures").inner_text() or page.locator(".turn").count() == 4
    picture(page, "page-chat")
    page.reload()
    assert page.locator(".conversation").inner_text() == "What is 34 + 57?"
    page.locator(".conversation").click()
    assert page.locator(".turn").count() == 4


def test_a_tool_call_is_answered_by_hand(open_page, nano_url, picture):
    page = open_page(nano_url)
    settings = open_settings(page)
    own = settings.get_by_role("textbox", name="Your own tools")
    own.fill("[{")
    assert "not JSON yet" in settings.locator(".state").inner_text()
    own.fill(WEATHER)
    assert "1 tool(s)" in settings.locator(".state").inner_text()
    ask(page, "What is the weather in Paris?")
    card = finished(page).locator(".tool-card")
    assert card.locator(".tool-name").inner_text() == "get_weather"
    assert card.locator("dd").inner_text() == "Paris"
    card.locator("textarea").fill('{"temperature": 17, "condition": "rain"}')
    page.reload()
    page.locator(".conversation").click()
    card = page.locator(".tool-card")
    assert "17" in card.locator("textarea").input_value()  # what was typed is not lost
    card.get_by_role("button", name="Send result").click()
    answer = finished(page, 2)
    assert re.search("17|rain", answer.locator(".markdown").last.inner_text())
    assert "rain" in page.locator(".tool-result").inner_text()
    picture(page, "page-tool-call")
    page.get_by_role("button", name="Answer differently").click()
    page.locator(".tool-card textarea").fill('{"temperature": 31, "condition": "sunny"}')
    page.get_by_role("button", name="Send result").click()
    page.wait_for_selector(".tool-result:has-text('sunny')")
    finished(page, 2)
    page.locator(".tool-actions").get_by_role("button", name="Previous version").click()
    assert "rain" in page.locator(".tool-result").inner_text()


def test_a_demo_tool_runs_at_a_click_and_by_itself(open_page, nano_url):
    page = open_page(nano_url)
    settings = open_settings(page)
    settings.get_by_label(re.compile("^Clock")).check()
    ask(page, "What is the current date and time?")
    card = finished(page).locator(".tool-card")
    assert card.locator(".tool-name").inner_text() == "clock"
    card.get_by_role("button", name="Run").click()
    assert "time" in json.loads(card.locator("textarea").input_value())
    page.keyboard.press("Enter")  # the focus is on "Send result"
    finished(page, 2)
    settings.get_by_label(re.compile("^Run these")).check()
    page.locator(".turn.answer").first.get_by_role("button", name="Generate another answer").click()
    page.wait_for_selector(".tool-result")
    finished(page, 2)
    assert page.locator(".versions").first.inner_text() == "2 / 2"


def test_stopping_keeps_what_arrived(open_page, thoughtful):
    page = open_page(thoughtful.root)
    ask(page, "Think")
    page.wait_for_selector(".thinking .thoughts-preview:has-text('HmHm')")
    page.keyboard.press("Escape")
    answer = finished(page)
    assert answer.locator(".note").inner_text() == "Stopped."
    answer.locator(".thoughts-toggle").click()
    assert "HmHm" in answer.locator(".thoughts-body").inner_text()
    thoughtful.wait_until_idle()
    assert thoughtful.stats().pages_held == 0
    answer.get_by_role("button", name="Generate another answer").click()
    page.wait_for_selector(".thinking")
    page.get_by_role("button", name="Stop (Esc)").click()
    assert finished(page).locator(".versions").inner_text() == "2 / 2"


def test_stop_thinking_brings_the_answer(open_page, thoughtful, picture):
    page = open_page(thoughtful.root)
    ask(page, "Think")
    page.wait_for_function("() => /Thinking for (1\\.[3-9]|[2-9])/.test(document.querySelector('.thoughts-label')?.textContent)")
    picture(page, "page-thinking")
    page.get_by_role("button", name="Answer now").click()
    answer = finished(page)
    assert answer.locator(".markdown").last.inner_text() == "Done."
    assert "Thought for" in answer.locator(".thoughts-label").inner_text()
    assert answer.locator(".stop-thinking").is_hidden()


def test_regenerating_and_editing_make_branches(open_page, nano_url):
    page = open_page(nano_url)
    ask(page, "What is 3 + 4?")
    finished(page).get_by_role("button", name="Generate another answer").click()
    page.wait_for_selector(".answer .versions:has-text('2 / 2')")
    answer = finished(page)
    answer.get_by_role("button", name="Previous version").click()
    assert page.locator(".answer .versions").inner_text() == "1 / 2"
    question = page.locator(".turn.user")
    question.get_by_role("button", name="Edit").click()
    page.locator("textarea.edit").fill("What is 20 + 5?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".user .versions:has-text('2 / 2')")
    assert "25" in finished(page).locator(".markdown").last.inner_text()
    question = page.locator(".turn.user")
    question.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".bubble").inner_text() == "What is 3 + 4?"
    assert page.locator(".answer .versions").inner_text() == "1 / 2"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.className").startswith("turn answer")
    page.locator("#message").focus()
    page.keyboard.press("ArrowUp")
    assert page.locator("textarea.edit").input_value() == "What is 20 + 5?"
    page.keyboard.press("Escape")
    page.locator(".turn.user").get_by_role("button", name="Delete from here").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_selector(".bubble:has-text('What is 3 + 4?')")


def test_the_inspector_shows_the_exact_prompt(open_page, nano_url, picture):
    page = open_page(nano_url)
    ask(page, "What is 34 + 57?")
    finished(page)
    page.locator("header").get_by_role("button", name="Prompt inspector").click()
    page.wait_for_selector(".prompt-token")
    assert "for this answer" in page.locator(".inspector-about").inner_text()
    assert page.locator(".prompt-token.control").all_inner_texts() == ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]
    page.fill("#message", "And <|system|> now?")
    page.wait_for_selector(".prompt-token:has-text('now')")
    assert "next answer" in page.locator(".inspector-about").inner_text()
    control = page.locator(".prompt-token.control").all_inner_texts()
    assert "<|system|>" not in control and control.count("<|user|>") == 2
    assert re.match(r"\d+ tokens of 4,096", page.locator(".inspector-count").inner_text())
    picture(page, "page-inspector")
    page.get_by_role("button", name="Text", exact=True).click()
    text = page.locator(".prompt-text").evaluate("node => node.textContent")
    assert text.startswith("[gMASK]<sop><|user|>\nWhat is 34 + 57?<|assistant|>") and text.endswith("And <|system|> now?<|assistant|>")
    page.locator(".panel").get_by_role("button", name="Close").click()
    page.locator(".turn.answer").get_by_role("button", name="Prompt of this answer").click()
    page.wait_for_selector(".inspector-about:has-text('for this answer')")


def test_tokens_show_their_probabilities(open_page, nano_url, picture):
    page = open_page(nano_url)
    open_settings(page)
    page.get_by_label("Temperature").fill("1")
    ask(page, "Tell me a short story about a dog")
    answer = finished(page)
    answer.get_by_role("button", name="Tokens and probabilities").click()
    tokens = answer.locator(".token")
    assert tokens.count() > 3 and answer.locator(".token.level-0").count()
    tokens.nth(2).hover()
    card = answer.locator(".token-card")
    assert card.locator(".alternative").count() in (5, 6) and card.locator(".alternative.chosen").count() == 1
    picture(page, "page-probabilities")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    answer.get_by_role("button", name="Back to the text").click()
    assert answer.locator(".token").count() == 0


def ground(page):
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


def test_dark_mode_follows_the_system_until_it_is_chosen(open_page, nano_url, picture):
    page = open_page(nano_url, color_scheme="dark")
    dark = ground(page)
    page.emulate_media(color_scheme="light")
    light = ground(page)
    assert dark != light
    page.get_by_role("button", name="Light or dark").click()
    assert ground(page) == dark
    page.reload()
    assert ground(page) == dark
    ask(page, "What is 34 + 57?")
    finished(page).locator(".thoughts-toggle").click()
    open_settings(page)
    picture(page, "page-dark")
    page.locator(".settings").get_by_label("Light", exact=True).check()
    assert ground(page) == light


def test_the_page_speaks_chinese(open_page, nano_url, picture):
    page = open_page(nano_url)
    page.fill("#message", "typed before")
    page.get_by_role("button", name="中文").click()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    assert page.locator("#message").input_value() == "typed before"
    ask(page, "What is 34 + 57?")
    answer = finished(page)
    label = answer.locator(".thoughts-label").inner_text()
    assert label == "思考" or label.startswith("思考了"), "thoughts of less than 10 ms have no duration"
    page.get_by_role("button", name="设置").click()
    picture(page, "page-chinese")
    page.reload()
    assert page.get_by_role("button", name="新对话").is_visible()
    assert not re.search(r">[^<]*\{\w+\}", page.content())
    chinese = open_page(nano_url, locale="zh-CN")
    assert chinese.locator("html").get_attribute("lang") == "zh-CN"


def test_conversations_leave_and_come_back_as_files(open_page, nano_url, tmp_path):
    page = open_page(nano_url)
    ask(page, "What is 3 + 4?")
    finished(page)
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".welcome").is_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    path = tmp_path / "export.json"
    download.value.save_as(path)
    assert json.loads(path.read_text())["format"] == "openglm-conversations"
    page.locator(".conversations li").hover()
    page.get_by_role("button", name="Delete: What is 3 + 4?").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_selector(".conversation", state="detached")
    page.locator("input[type=file]").set_input_files(path)
    page.wait_for_selector(".bubble:has-text('What is 3 + 4?')")
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": "openglm-conversations", "version": 1, "conversations": [{"tree": 1}]}')
    page.locator("input[type=file]").set_input_files(broken)
    page.wait_for_selector(".toast:has-text('could not be imported')")
    assert page.locator(".conversation").count() == 1


HOSTILE = """# Title
<script>window.hacked = 1</script> <img src=x onerror="window.hacked = 1">

[click](javascript:window.hacked=1) [data](data:text/html,x) [fine](https://example.com/a) ![picture](https://example.com/x.png)

Euler: $e^{i\\pi} + 1 = 0$, but it costs $5 and $6. Also \\(x^2\\) and \\boxed.

$$\\boxed{\\int_0^1 x\\,dx = \\frac{1}{2}}$$

\\[ \\href{javascript:alert(1)}{x} + \\notacommand \\]

```python
def f(x):  # a comment
    return "a" + str(x)
```

| a | b |
|--:|:--|
| 1 | **2** |

- one
- two
"""


def test_answers_are_shown_as_markdown_and_can_do_no_harm(open_page, nano_url, tmp_path, picture):
    page = open_page(nano_url)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    path = tmp_path / "hostile.json"
    messages = [{"role": "user", "content": "<b>bold</b>"}, {"role": "assistant", "content": HOSTILE, "reasoning_content": HOSTILE}]
    path.write_text(json.dumps(messages))
    page.locator("input[type=file]").set_input_files(path)
    content = page.locator(".turn.answer .markdown").last
    page.wait_for_selector(".maths .katex")
    page.locator(".thoughts-toggle").click()
    picture(page, "page-markdown")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".bubble").inner_text() == "<b>bold</b>"
    assert "<script>" in content.inner_text() and page.locator("article script, article img").count() == 0
    links = content.locator("a").evaluate_all("nodes => nodes.map(node => [node.textContent, node.getAttribute('href')])")
    assert links == [["fine", "https://example.com/a"], ["picture", "https://example.com/x.png"]]
    assert content.locator(".maths .katex").count() == 3
    assert "it costs $5 and $6" in content.inner_text()
    assert content.locator("code.maths-source").count() == 1  # what KaTeX cannot read stays readable
    assert content.locator(".code-keyword").count() and content.locator("td strong").inner_text() == "2"
    assert page.evaluate("document.querySelector('.answer [style*=javascript]')") is None
    assert all(url.startswith(nano_url) for url in requests if not url.startswith("data:"))


def test_a_key_is_asked_for_and_kept_in_the_tab_only(open_page, scripted_dir):
    from live_server import LiveServer

    from openglm.config.server import ServerConfig

    server = LiveServer(scripted_dir, ServerConfig(served_model_names=("scripted",), api_keys=("secret-key",)))
    try:
        page = open_page(server.root)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog .problem")
        page.keyboard.press("Escape")
        ask(page, "Hi")
        page.wait_for_selector(".error-note:has-text('asks for an API key')")
        assert page.locator(".bubble").inner_text() == "Hi"
        page.locator(".error-note").get_by_role("button", name="Enter key").click()
        dialog.get_by_label("API key").fill("secret-key")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer:not(.running) > .markdown:has-text('Moment')")
        assert "secret-key" in stored(page, "sessionStorage") and "secret-key" not in stored(page)
    finally:
        server.close()


def _answering(answer):
    """A handler that answers a request in the server's place; None cuts the connection."""
    return lambda route: route.fulfill(**answer) if answer else route.abort()


def test_failures_say_what_to_do_and_lose_nothing(open_page, nano_url):
    page = open_page(nano_url)
    page.wait_for_selector(".model-name:not(:empty)")
    refusal = {"error": {"message": "12 requests are waiting", "type": "x", "param": None, "code": "queue_full"}}
    loading = {"error": {"message": "loading", "code": "model_loading"}}
    chunk = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "The beginning"}, "finish_reason": None}]}
    failed = {"error": {"message": "the engine died", "code": "engine_unavailable"}}
    start = f"data: {json.dumps(chunk)}\n\n"
    stream = {"status": 200, "content_type": "text/event-stream"}
    cases = [
        ({"status": 429, "headers": {"retry-after": "7"}, "json": refusal}, "too much to do", "Try again in"),
        (
            {"status": 503, "headers": {"retry-after": "7"}, "json": loading},
            "not available",
            "Try again in",
        ),
        ({"status": 400, "json": {"error": {"message": "too long", "code": "context_length_exceeded"}}}, "no longer fits", "Try again"),
        ({"status": 400, "json": {"error": {"message": "temperature is out of range"}}}, "temperature is out of range", "Try again"),
        ({"status": 502, "body": "<html>bad gateway</html>"}, "not available", "Try again"),
        ({"status": 500, "body": ""}, "failed on the server", "Try again"),
        ({**stream, "body": f"{start}data: {json.dumps(failed)}\n\ndata: [DONE]\n\n"}, "the engine died", "Try again"),
        ({**stream, "body": start}, "broke off", "Try again"),
        ({**stream, "body": f"{start}data: {{nonsense\n\n"}, "broke off", "Try again"),
        (None, "cannot be reached", "Try again"),
    ]
    ask(page, "Precious words")
    finished(page)
    for answer, title, button in cases:
        pattern = "**/v1/chat/completions"
        page.route(pattern, _answering(answer))
        page.locator(".answer").get_by_role("button", name=re.compile("Generate another answer|Try again")).last.click()
        note = finished(page).locator(".error-note")
        assert title in note.inner_text() and button in note.inner_text(), title
        assert page.locator(".bubble").inner_text() == "Precious words"
        assert (answer is not None and start in str(answer.get("body"))) == ("The beginning" in page.locator(".answer").inner_text())
        page.unroute(pattern)
    note.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".answer:not(.running) .figures:has-text('tok/s')")
    assert page.locator(".error-note").count() == 0


def test_an_engine_that_dies_in_the_middle_is_told_and_comes_back(open_page, thoughtful):
    page = open_page(thoughtful.root)
    ask(page, "Think")
    page.wait_for_selector(".thinking .thoughts-preview:has-text('HmHm')")
    os.kill(thoughtful.client.pid, signal.SIGKILL)
    answer = finished(page)
    assert "failed on the server" in answer.locator(".error-note").inner_text()
    answer.locator(".thoughts-toggle").click()
    assert "HmHm" in answer.locator(".thoughts-body").inner_text()
    page.wait_for_selector(".banner:has-text('restarting')")
    page.wait_for_selector(".toast:has-text('back')")
    assert page.locator(".banner").is_hidden()
    answer.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="Answer now").click()
    assert finished(page).locator(".markdown").last.inner_text() == "Done."


def test_without_a_connection_the_page_waits_and_says_when_it_is_back(open_page, nano_url):
    page = open_page(nano_url)
    page.wait_for_selector(".model-name:not(:empty)")
    page.context.set_offline(True)
    ask(page, "What is 3 + 4?")
    assert "cannot be reached" in finished(page).locator(".error-note").inner_text()
    page.wait_for_selector(".banner:has-text('No connection')")
    page.fill("#message", "half a sentence")
    page.context.set_offline(False)
    page.wait_for_selector(".toast:has-text('back')")
    page.locator(".error-note").get_by_role("button", name="Try again").click()
    assert "7" in finished(page).locator(".markdown").last.inner_text()
    page.reload()
    page.locator(".conversation").click()
    assert page.locator("#message").input_value() == "half a sentence"


def test_the_keyboard_reaches_everything(open_page, nano_url):
    page = open_page(nano_url)
    page.fill("#message", "one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.locator("#message").input_value() == "one\ntwo" and page.locator(".turn").count() == 0
    page.evaluate(
        """() => document.querySelector('#message').dispatchEvent(
            new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"""
    )
    assert page.locator(".turn").count() == 0  # Enter ends the composition of a character, it does not send
    page.get_by_role("button", name="Settings").click()
    page.keyboard.press("Escape")
    assert page.locator(".panel").is_hidden()
    page.locator("body").click(position={"x": 700, "y": 300})
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "message"
    page.get_by_role("button", name="Keyboard").click()
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, a[href]')].filter(
            node => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length || node.hidden)).length"""
    )
    assert nameless == 0
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_it_fits_a_phone(open_page, nano_url, picture):
    page = open_page(nano_url, viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True)
    assert page.locator(".sidebar").is_hidden()
    ask(page, "What is 34 + 57?")
    finished(page)
    picture(page, "page-phone")
    for name in ("Conversations", "Settings", "Prompt inspector"):
        page.locator("header").get_by_role("button", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.locator(".scrim").click(position={"x": 370 if name == "Conversations" else 5, "y": 600})
        assert page.locator(".scrim").is_hidden()
    page.goto(f"{nano_url}/#metrics")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_plots_show_what_the_server_does(open_page, nano_url, picture):
    page = open_page(nano_url)
    page.goto(f"{nano_url}/#metrics")
    page.wait_for_selector(".metrics .plot-line[d^=M]", state="attached")
    page.evaluate(
        """() => Promise.all(Array.from({ length: 6 }, (_, i) => {
            const messages = [{ role: 'user', content: `What is ${i + 20} + 57?` }];
            const body = JSON.stringify({ messages, ignore_eos: true, max_tokens: 150 });
            return fetch('/v1/chat/completions', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
        }))"""
    )
    page.wait_for_function("() => document.querySelectorAll('.plot .facts dd')[0]?.textContent.replace(',', '') > 500")
    assert "position 1" in page.locator(".bars").inner_text()
    assert re.search(r"\d+ %", page.locator(".bars").inner_text())
    page.wait_for_function("() => document.querySelectorAll('.plot-line')[0].getAttribute('d').split('L').length > 5")
    assert page.locator(".facts:has-text('device')").inner_text().count("glm-nano") == 1
    picture(page, "page-metrics")
    page.get_by_role("button", name="Metrics").click()
    assert page.locator("#message").is_visible()
