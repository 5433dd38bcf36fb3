from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

from inspect_cases import clean, write

import tunesmith

HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "</section></body>", "<!-- ",
           "{{ 7*7 }}", "&lt;b&gt;", "javascript:alert(1)", "\x1b[31mred\u202e", "]]>",
           "' onmouseover='alert(1)"]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(tmp_path: Path, rows: list[dict[str, str]], data: str = "") -> tuple[str, Page]:
    target = tmp_path / "page.html"
    result = tunesmith.inspect(write(tmp_path, rows, data), html=target)
    assert result["html"] == str(target)
    text = target.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    return text, page


def test_text_of_the_data_is_never_html(tmp_path: Path) -> None:
    rows = clean(60)
    for row, hostile in zip(rows, HOSTILE, strict=False):
        row["q"] += hostile
        row["a"] = hostile + row["a"]
    text, page = page_of(tmp_path, rows)
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "b", "u", "span", "table",
        "tbody", "tr", "td", "meter", "section", "input", "label", "script"}
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") or name in ("src", "href") for _, attributes in page.tags
                   for name in attributes)
    assert "\x1b" not in text
    assert "\u202e" not in text
    for hostile in HOSTILE[:7]:
        assert hostile in page.text


def test_the_page_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, clean(60))
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "://" not in re.sub(r"<div class=\"tokens\">.*?</div>", "", text)


def test_the_page_shows_the_tokens_and_the_rows_that_findings_name(tmp_path: Path) -> None:
    rows = clean(400)
    rows[390]["a"] += " Donâ€™t"
    text, page = page_of(tmp_path, rows, "validation: 0.1")
    assert "rows.jsonl, line 391" in text
    assert text.count('<section class="row">') == 201
    example = tunesmith.inspect(tmp_path / "rows.yaml", rows=1)["examples"][0]
    learnt = [str(number) for number, loss in zip(example["ids"], example["loss_mask"], strict=True) if loss]
    section = text.split('<section class="row">')[2]
    assert re.findall(r'<b title="(\d+)"', section) == learnt
    assert re.findall(r'<[bu] title="(\d+)"', section) == list(map(str, example["ids"]))
    assert "mojibake" in page.text
