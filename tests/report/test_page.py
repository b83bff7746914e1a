"""The page: model outputs stay text, nothing is fetched, no script can run."""

import html.parser

import pytest

from gkd.report.report import report
from gkd.sweep import claims
from tests.report.run_folders import write_run

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>{{ 7*7 }}"


class Page(html.parser.HTMLParser):
    """Collects the tags, their attributes, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    samples = [{"prompt": EVIL, "student": EVIL, "reference": EVIL, "teacher": EVIL}]
    record = {"metrics": {"student": {EVIL: {"bleu": 1.0}}}, "signatures": {EVIL: EVIL}}
    outputs = [
        {
            "input": EVIL, "reference": EVIL, "student": {EVIL: [{"text": EVIL}]},
            "token_divergences": {"free_running": {"pieces": [EVIL], "forward_kl": [1.5]}},
        }
    ]  # fmt: skip
    write_run(
        folder / "a&b", scores={0: 1.0, 9: 2.0}, samples=samples, evaluation=record,
        outputs=outputs, settings={"prefix": repr(EVIL)},
    )  # fmt: skip
    write_run(folder / "going", scores={0: 1.0, 9: 2.0}, complete=False, samples=samples)
    comparison = {"values": [1.0], "mean": 1.0, "interval": None, "verdict": EVIL, "metric": EVIL}
    claims.write(folder, {"claim": EVIL, "verdict": EVIL, "comparisons": {EVIL: comparison}})
    (folder / "broken").mkdir()
    (folder / "broken" / "metrics.jsonl").write_text("<script>\n")
    path = report([folder], output=folder / "out")
    return Page(path.read_text(encoding="utf-8"))


def test_a_claim_has_its_figure(page):
    assert ("figure", "id", "claim-1") in page.attributes


def test_outputs_stay_text(page):
    assert "script" not in page.tags and "img" not in page.tags
    assert page.text.count("alert('x')") >= 6 and "{{ 7*7 }}" in page.text


def test_nothing_is_fetched_and_no_script_may_run(page):
    policy = [value for _, name, value in page.attributes if name == "content" and "src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not {"link", "iframe", "object", "img", "script"} & set(page.tags)
    links = [value for _, name, value in page.attributes if name.endswith("href")]
    assert links and all(value.startswith("#") for value in links)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_every_id_is_unique_and_every_reference_has_its_target(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = [v for _, name, v in page.attributes if name in ("aria-labelledby", "href")]
    assert {value.removeprefix("#") for value in named} <= set(ids)


def test_the_page_says_what_is_going_on_and_what_was_left_out(page):
    assert "Not complete yet: stopped: going (step 9)" in " ".join(page.text.split())
    assert "broken/metrics.jsonl:1" in page.text


def test_a_token_is_shaded_by_its_kl(page):
    assert ("span", "class", "token k4") in page.attributes
    assert ("span", "title", "1.500 nats") in page.attributes
