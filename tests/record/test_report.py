"""The report is parsed as a browser would, and its figures are compared with those of the files it was made from."""

import html.parser
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.record.page import format_bytes, format_energy, format_grams, format_scaled, format_seconds
from groundup.record.report import write_report
from groundup.record.sections.cost import total

RunMaker = Callable[..., Path]

EVERY_SECTION = [
    *("corpus", "tokenizer", "pretraining", "samples", "conversations", "evaluation"),
    *("cost", "lineage", "chat"),
]
# What a report shows whatever figures are missing or wrong.
LASTING = {"samples", "lineage", "chat"}
NEVER_CLOSED = {"meta", "br"}


class Document(html.parser.HTMLParser):
    """Collects what the tests ask for, and insists that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.sections: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag == "section":
            self.sections.append(dict(attributes)["id"] or "")
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def report_of(run: Path) -> Document:
    return Document(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., None]) -> Document:
    """The report of a run whose stages are all done."""
    run = tmp_path_factory.mktemp("runs") / "pocket"
    run.mkdir()
    write_run(run)
    return report_of(run)


def test_a_finished_run_has_every_section_and_a_link_to_each(finished: Document) -> None:
    assert finished.sections == EVERY_SECTION
    assert [value for tag, name, value in finished.attributes if (tag, name) == ("a", "href")] == [
        f"#{name}" for name in EVERY_SECTION
    ]


@pytest.mark.parametrize(
    "expected",
    [
        "A chat assistant of 13 million parameters, grown from 10.9 MB of raw text",
        *("12.6 MB", "1,316", "train: 10 MB, 1,098 documents", "thrown out: 1.71 MB, 129 documents", "13.4 MB/s"),
        *(
            "near-duplicate",
            "lib2to3/__init__.py",
            "# Dummy file to make this directory a package.",
            "licence lines: 3,204",
        ),
        *("quotes of held-out passages: 77 (1,502 words in 41 documents)", "4,096", "NotImplementedError"),
        *(
            "3.46 bytes each",
            "tokens in 600 steps, 1.7 epochs",
            "1.141",
            "63.4 %",
            "517 GFLOP/s",
            "815 GFLOP/s",
            "18,760 tokens per second on 2 threads",
        ),
        *("step 600", "with open(path) as file:", "14,210", "24.7 %", "unanswerable", "Serialize obj"),
        *(
            "xz -9e: 1.648",
            "compressed as one file",
            "400 asked · refused 3.1 %",
            "83.5 %",
            "± 7.1 %",
            "signature",
            "61.2 %",
            "74.4 %",
            "93.5 %",
            "+59.1 %",
            "+54.0 % … +64.0 %",
            "< 0.001",
        ),
        *("1.76 GB", "measured", "estimated", "processor time × 8 W per core", "445 g/kWh"),
        *("The chain of 6 records is unbroken", "groundup chat "),
    ],
)
def test_the_figures_of_the_run_are_told(expected: str, finished: Document) -> None:
    assert expected in finished.text


def test_ids_in_the_lineage_are_those_of_the_ledger(make_run: RunMaker) -> None:
    run = make_run()
    text = report_of(run).text
    for line in (run / "ledger.jsonl").read_text().splitlines():
        assert json.loads(line)["id"][:8] in text


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&</pre></style><!--"


def poison(value: object) -> object:
    """Every text of a JSON value replaced by one that would like to be HTML; numbers stay."""
    if isinstance(value, dict):
        return {name: poison(item) for name, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_no_text_of_a_run_can_become_html(make_run: RunMaker, finished: Document) -> None:
    run = make_run(name="run<script>&'\"")
    for path in run.glob("*/*.json"):
        path.write_text(json.dumps(poison(json.loads(path.read_text()))))
    samples = run / "04-pretrain/samples.jsonl"
    samples.write_text(
        "".join(json.dumps(poison(json.loads(line))) + "\n" for line in samples.read_text().splitlines())
    )
    document = report_of(run)
    assert document.tags == finished.tags, "the same elements as in a report of harmless texts, and no others"
    assert not {"script", "img"} & document.tags
    assert not any(name.startswith("on") for _, name, _ in document.attributes)
    assert HOSTILE in document.text


def test_text_that_is_no_unicode_does_not_stop_the_report(make_run: RunMaker) -> None:
    run = make_run()
    (run / "04-pretrain/samples.jsonl").write_text('{"step": 1, "prompt": "a", "text": "\\udcff and \\u0000"}\n')
    assert "? and" in report_of(run).text


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(make_run: RunMaker) -> None:
    run = make_run()
    text = write_report(run).read_text()
    document = Document(text)
    assert not re.search(r"https?://|//[a-z]|url\(|@import", text)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & document.tags
    assert not {name for _, name, _ in document.attributes} & {"src", "srcset", "data", "action", "formaction", "ping"}
    policy = next(value for tag, name, value in document.attributes if (tag, name) == ("meta", "content"))
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


STAGES = ("corpus", "tokenizer", "tokens", "pretrain", "sft", "evaluate")


@pytest.mark.parametrize("count", range(1, len(STAGES)))
def test_a_run_that_stopped_after_any_stage_tells_what_there_is(count: int, make_run: RunMaker) -> None:
    document = report_of(make_run(*STAGES[:count]))
    told_by = {"tokenizer": "tokenizer", "pretraining": "pretrain", "samples": "pretrain"}
    told_by |= {"conversations": "sft", "evaluation": "evaluate"}
    expected = [name for name in EVERY_SECTION if told_by.get(name, "corpus") in STAGES[:count]]
    assert document.sections == (expected if "pretrain" in STAGES[:count] else [*expected[:-1], "next"])
    assert ("groundup chat" in document.text) == ("sft" in STAGES[:count])
    assert ("groundup sample" in document.text) == ("pretrain" in STAGES[:count])
    unfinished = [value for tag, name, value in document.attributes if (tag, name) == ("li", "title")].count(
        "not finished"
    )
    assert unfinished == len(STAGES) - count


def test_what_a_stage_is_still_working_on_is_not_told(make_run: RunMaker) -> None:
    run = make_run(*STAGES[:3])
    (run / ".04-pretrain.partial").mkdir()
    (run / ".04-pretrain.partial/summary.json").write_text('{"parameters": 5}')
    assert "pretraining" not in report_of(run).sections


def test_any_key_may_be_missing(make_run: RunMaker) -> None:
    """Each top-level key is taken out in turn, then all at once: the report is still a whole page."""
    run = make_run()
    for path in [*run.glob("*/summary.json"), *run.glob("*/scores.json"), *run.glob("*/cost.json")]:
        whole = json.loads(path.read_text())
        for name in whole:
            path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
            assert set(report_of(run).sections) >= LASTING
        path.write_text("{}")
        assert set(report_of(run).sections) >= LASTING
        path.unlink()
        assert set(report_of(run).sections) >= LASTING


def test_any_figure_may_be_null_or_of_another_kind(make_run: RunMaker) -> None:
    run = make_run()
    for path, wrong in itertools.product(
        [*run.glob("*/summary.json"), *run.glob("*/scores.json"), *run.glob("*/cost.json")], [None, "text", [1]]
    ):
        whole = json.loads(path.read_text())
        path.write_text(json.dumps(dict.fromkeys(whole, wrong)))
        assert set(report_of(run).sections) >= LASTING
        path.write_text(json.dumps(whole))


@pytest.mark.parametrize("lines", ["", '{"step": 1}\n', '{"step": 1, "tokens": 5, "loss": null}\n{"step": 2, "lo'])
def test_metrics_of_a_run_that_has_just_begun_or_diverged_are_no_trouble(lines: str, make_run: RunMaker) -> None:
    run = make_run()
    for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl"):
        (run / "04-pretrain" / name).write_text(lines)
    assert "pretraining" in report_of(run).sections


def test_where_bits_per_byte_of_train_text_were_not_written_the_loss_is_drawn(make_run: RunMaker) -> None:
    run = make_run()
    assert "nats per token" not in report_of(run).text
    path = run / "04-pretrain/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"bits_per_byte": None}) + "\n" for row in rows))
    text = report_of(run).text
    assert "Training loss, nats per token" in text and "Bits per byte over tokens" in text


def test_the_pseudo_likelihood_of_an_encoder_is_shown_by_its_name(make_run: RunMaker) -> None:
    run = make_run()
    assert "seudo bits per byte" not in report_of(run).text
    summary, scores = run / "04-pretrain/summary.json", run / "06-evaluate/scores.json"
    figures = {"heldout_sampled_pseudo_bits_per_byte": 0.71239, "heldout_sampled_tokens": 1024}
    summary.write_text(json.dumps(json.loads(summary.read_text()) | figures))
    row = {"name": "model, pseudo-likelihood of 900 tokens", "value": 0.7, "low": 0.6, "high": 0.8, "how": "masked"}
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"pseudo_bits_per_byte": [row]}))
    text = report_of(run).text
    assert "pseudo bits per byte, 1,024 tokens sampled" in text and "0.712" in text
    assert "model, pseudo-likelihood of 900 tokens" in text and "not to be compared with the others" in text


def test_a_sample_of_the_held_out_text_is_told_as_one(make_run: RunMaker) -> None:
    run = make_run()
    path = run / "06-evaluate/scores.json"
    scores = json.loads(path.read_text())
    for heldout, told in (({"bytes": 892_887, "of_bytes": 7_000_000}, True), ({"bytes": 1, "of_bytes": 1}, False)):
        path.write_text(json.dumps(scores | {"heldout": heldout}))
        assert ("893 kB, a sample of the 7 MB held out" in report_of(run).text) == told


def test_a_model_that_guesses_hidden_text_is_told_as_one(make_run: RunMaker) -> None:
    run = make_run("corpus", "tokenizer", "tokens", "pretrain")
    (run / "06-evaluate").mkdir()
    path = run / "04-pretrain/summary.json"
    summary = json.loads(path.read_text())
    del summary["heldout_bits_per_byte"]
    path.write_text(json.dumps(summary | {"objective": "masked tokens", "heldout_masked_loss": 2.345}))
    metrics = run / "04-pretrain/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if "bits" not in key} for row in rows]
    hidden = [row | ({"heldout_masked_loss": 2.5} if row["step"] % 50 == 0 else {}) for row in kept]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in hidden))
    (run / "04-pretrain/samples.jsonl").unlink()
    how = "masked tokens, the same ones in each window of 512 tokens"
    row = {"name": "model", "value": 2.345, "unigram_entropy": 5.678, "targets": 12_345, "how": how}
    (run / "06-evaluate/scores.json").write_text(json.dumps({"bits_per_byte": [], "hidden_text": [row]}))
    text = report_of(run).text
    for told in (
        "guesses hidden text (masked tokens)",
        "2.345",
        "5.678",
        "12,345",
        how,
        "Loss, nats per guessed token",
    ):
        assert told in text
    assert "groundup sample" not in text and "groundup chat" not in text
    assert "Bits per byte over" not in text


def test_the_load_of_experts_is_drawn_where_there_are_any(make_run: RunMaker) -> None:
    run = make_run()
    assert "Busiest expert" not in report_of(run).text
    path = run / "04-pretrain/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"expert_load_max": 1.5 + row["step"] / 1e3}) + "\n" for row in rows))
    assert "Busiest expert" in report_of(run).text


def test_a_tampered_ledger_is_reported_not_drawn(make_run: RunMaker) -> None:
    run = make_run()
    ledger = run / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"seed": 1', '"seed": 2', 1))
    text = report_of(run).text
    assert "The ledger does not hold" in text and "line 1: the record was altered" in text
    assert "is unbroken" not in text


def test_two_reports_of_one_run_are_equal(make_run: RunMaker) -> None:
    run = make_run()
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no finished stage"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_total_is_measured_only_if_all_its_parts_were_and_memory_is_not_added_up() -> None:
    def figure(value: float, basis: str) -> dict[str, object]:
        return {"value": value, "basis": basis}

    first = {
        "wall_seconds": figure(2, "measured"),
        "energy_joules": figure(5, "measured"),
        "peak_memory_bytes": figure(7, "measured"),
    }
    second = {
        "wall_seconds": figure(3, "measured"),
        "energy_joules": figure(6, "estimated"),
        "peak_memory_bytes": figure(4, "measured"),
    }
    assert total([first, second], "wall_seconds") == figure(5, "measured")
    assert total([first, second], "energy_joules") == figure(11, "estimated")
    assert total([first, second], "peak_memory_bytes") == figure(7, "measured")
    assert total([{}, {}], "wall_seconds") is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_bytes(999_900), "1 MB"),
        (format_bytes(950), "950 B"),
        (format_scaled(4.056e14, "FLOP"), "406 TFLOP"),
        (format_energy(3600 * 12.34), "12.3 Wh"),
        (format_energy(36), "10 mWh"),
        (format_grams(0.0042), "4.2 mg"),
        (format_grams(1530), "1.53 kg"),
        (format_seconds(3.14), "3.1 s"),
        (format_seconds(65), "1:05 min"),
        (format_seconds(7325), "2:02:05 h"),
    ],
)
def test_quantities_have_three_figures_and_a_unit(written: str, expected: str) -> None:
    assert written == expected
