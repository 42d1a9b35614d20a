"""The files of the web page and the routes that only it uses."""

import asyncio
import gzip
import json
import re
from pathlib import Path

import httpx
import pytest
from canned_engine import CannedEngine
from test_surface import BODY, call, client_of, service_of

import openglm
from openglm.config.server import RequestLimits
from openglm.server import page_routes
from openglm.server.app import build_app
from openglm.server.web_page import WebPage

DIRECTORY = Path(openglm.__file__).parent / "server" / "page"
IDENTITY = {"accept-encoding": "identity"}


async def test_the_page_is_served_with_a_policy_that_lets_nothing_in():
    async with client_of(service_of()) as client:
        response = await client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["trusted-types"] == "'none'" and policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in str(policy)
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_inline_script_or_style_and_names_only_files_that_exist():
    page = (DIRECTORY / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", page)
    paths = WebPage().paths
    for name in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert f"/{name}" in paths
    for script in DIRECTORY.glob("*.js"):
        for name in re.findall(r'(?:from|import\()\s*"\./([^"]+)"', script.read_text()):
            assert f"/page/{name}" in paths, (script.name, name)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script.read_text()), (
            script.name
        )


def test_nothing_in_the_page_points_elsewhere():
    for file in [*DIRECTORY.glob("*.*"), DIRECTORY / "vendor" / "katex.css"]:
        addresses = re.findall(r"https?://[^\s\"'`)]+", file.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name
    assert sum(path.stat().st_size for path in DIRECTORY.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/page/main.js", "text/javascript; charset=utf-8"),
        ("/page/base.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/vendor/fonts/KaTeX_Main-Regular.woff2", "font/woff2"),
    ],
)
async def test_files_come_whole_or_not_again(path, media_type):
    body = (DIRECTORY / path.removeprefix("/page/")).read_bytes()
    async with client_of(service_of()) as client:
        plain = await client.get(path, headers=IDENTITY)
        zipped = await client.get(path, headers={"accept-encoding": "gzip"})
        refused = await client.get(path, headers={"accept-encoding": "br, gzip;q=0"})
        head = await client.head(path, headers=IDENTITY)
        again = await client.get(path, headers={**IDENTITY, "if-none-match": f'"x", W/{plain.headers["etag"]}'})
        other = await client.get(path, headers={**IDENTITY, "if-none-match": '"x"'})
    assert plain.headers["content-type"] == media_type
    assert "content-encoding" not in refused.headers
    assert plain.content == refused.content == zipped.content == other.content == body
    assert ("content-encoding" in zipped.headers) == (not media_type.startswith("font"))
    assert head.status_code == 200 and head.headers["etag"] == plain.headers["etag"]
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers and plain.headers["cache-control"] == "no-cache"


PATHS = """
    /page /page/ /page/index.html /page/package.json /page/vendor/README.md /page/vendor/LICENSE.katex /page/.. /page/../web_page.py
    /page/../../__init__.py /page/%2e%2e/web_page.py /page//main.js /page/main.js/ /page/MAIN.JS /page/vendor /page/main.js%00 //
    /page/..%2fweb_page.py /page/vendor/../main.js /page/\\main.js /main.js
"""


@pytest.mark.parametrize("path", PATHS.split())
async def test_no_path_leads_out_of_the_table(path):
    assert (await call(build_app(service_of()), "GET", path))["status"] == 404


async def test_only_reading_the_files_needs_no_key():
    async with client_of(service_of(api_keys=("secret",))) as client:
        for path in ("/", "/page/main.js"):
            assert (await client.get(path)).status_code == 200
            assert (await client.head(path)).status_code == 200
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert (await client.request(method, path)).status_code == 401
                allowed = await client.request(method, path, headers={"x-api-key": "secret"})
                assert allowed.status_code == 405
        for path in ("/page/about", "/page/figures", "/page/nothing.js"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/page/prompt", json=BODY)).status_code == 401
        assert (await client.post("/v1/chat/completions/x/stop_thinking")).status_code == 401


async def test_facts_and_figures_before_and_after_the_engine_is_there():
    engine = CannedEngine([[65]])
    async with client_of(service_of(engine)) as client:
        about = (await client.get("/page/about")).json()
        assert (about["model"], about["max_model_len"], about["engine"]["device"]) == ("test-model", 4000, "cpu")
        assert about["sampling"].keys() == {"temperature", "top_p", "top_k", "min_p"}
        response = await client.get("/page/figures")
        assert response.headers["cache-control"] == "no-store"
        first = response.json()
        assert (first["state"], first["stats"]["num_steps"]) == ("ready", 7)
        assert (await client.get("/page/figures")).json()["time"] == first["time"]  # asked again too soon: the same reading
    engine.state = "restarting"
    service = service_of(engine)
    async with client_of(service) as client:
        assert (await client.get("/page/about")).json()["engine"] is None
        assert (await client.get("/page/figures")).json()["stats"] is None
        service.begin_drain()
        assert (await client.get("/page/figures")).json()["state"] == "draining"


async def test_a_busy_engine_does_not_hold_the_page_up(monkeypatch):
    monkeypatch.setattr(page_routes, "_STATS_WAIT_S", 0.01)
    engine = CannedEngine([[65]])
    engine.stats = lambda: asyncio.Event().wait()
    async with client_of(service_of(engine)) as client:
        assert (await client.get("/page/figures")).json()["stats"] is None


async def test_the_prompt_shows_what_is_a_control_token_and_what_only_looks_like_one():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<|user|> é🙂"}]
    service = service_of()
    async with client_of(service) as client:
        prompt = (await client.post("/page/prompt", json={"messages": messages})).json()
        off = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
        without = (await client.post("/page/prompt", json=off)).json()
    text = "".join(segment["text"] for segment in prompt["segments"])
    assert text == "[gMASK]<sop><|system|>\nBe brief.<|user|>\n<|user|> é🙂<|assistant|>"
    tokens = prompt["tokens"]
    assert len(tokens["ids"]) == len(tokens["texts"]) == len(tokens["control"]) == prompt["num_tokens"]
    assert service.model.tokenizer.decode(tokens["ids"]) == text
    control = [shown for shown, is_control in zip(tokens["texts"], tokens["control"], strict=True) if is_control]
    assert control == ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert "<0xF0>" in tokens["texts"]
    assert (prompt["start"], without["start"], prompt["max_model_len"]) == ("undecided", "content", 4000)


async def test_a_long_prompt_is_cut_in_the_middle_not_refused():
    async with client_of(service_of()) as client:
        body = {"messages": [{"role": "user", "content": "x" * 100_000}]}
        prompt = (await client.post("/page/prompt", json=body)).json()
    tokens = prompt["tokens"]
    assert prompt["num_tokens"] > 100_000 > prompt["max_model_len"]
    assert len(tokens["ids"]) == page_routes.MAX_SHOWN_TOKENS == prompt["num_tokens"] - tokens["omitted"]
    assert (
        tokens["texts"][0] == "[gMASK]" and tokens["texts"][-1] == "<|assistant|>" and tokens["first"] == page_routes.MAX_SHOWN_TOKENS // 2
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"messages": []}', b'{"messages": [{"role": "x"}]}', b"\xff\x00", b"[" * 9999]
)
async def test_a_bad_body_is_refused_as_it_is_everywhere(content):
    async with client_of(service_of(limits=RequestLimits(body_bytes=20_000))) as client:
        headers = {"content-type": "application/json"}
        response = await client.post("/page/prompt", content=content, headers=headers)
        assert response.status_code == 400 and response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert (await client.post("/page/prompt", content=content)).status_code == 415
        assert (await client.post("/page/prompt", content=b" " * 20_001, headers=headers)).status_code == 413


@pytest.mark.parametrize("answer", ["nobody", "chatcmpl-nobody", "%00", "a" * 5000])
async def test_stopping_the_thoughts_of_an_answer_that_is_not_there_is_404(answer):
    async with client_of(service_of()) as client:
        response = await client.post(f"/v1/chat/completions/{answer}/stop_thinking")
    assert response.status_code == 404
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == ("answer_not_found", "id")


def test_an_answer_stops_thinking_when_it_is_told_to(thoughtful):
    for num_choices in (1, 2):
        body = {"messages": [{"role": "user", "content": "Think"}], "stream": True, "temperature": 0, "n": num_choices}
        reasoning, content, stopped = [""] * num_choices, [""] * num_choices, None
        with httpx.Client(base_url=thoughtful.url, timeout=60) as client, client.stream("POST", "/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                for choice in chunk["choices"]:
                    reasoning[choice["index"]] += choice["delta"].get("reasoning_content") or ""
                    content[choice["index"]] += choice["delta"].get("content") or ""
                if stopped is None and all(reasoning):
                    stopped = httpx.post(f"{thoughtful.url}/chat/completions/{chunk['id']}/stop_thinking")
                    assert stopped.json() == {"id": chunk["id"], "object": "chat.completion.stop_thinking"}
        assert stopped.status_code == 202
        assert all(set(text.replace("\n", "")) == set("Hm") for text in reasoning)
        assert content == ["Done."] * num_choices


def test_files_are_compressed_once():
    file = WebPage()._files["/page/base.css"]
    assert gzip.decompress(file.gzipped) == file.body
    assert file.gzipped is file.gzipped
