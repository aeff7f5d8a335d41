"""The chapter on what was made from what, as the ledger has it."""

from collections.abc import Sequence

from markupsafe import Markup

from groundup.errors import UserError
from groundup.record.graph import Node, lineage_graph
from groundup.record.ledger import Ledger, Record
from groundup.record.markup import join, tag
from groundup.record.page import Section, chart, table
from groundup.record.run_folder import RunFolder

ID_LETTERS = 8


def lineage_section(run: RunFolder) -> Section | None:
    """The lineage graph and the ids. Reads ledger.jsonl; one that was tampered with is reported, not trusted."""
    path = run.path / "ledger.jsonl"
    if not path.exists():
        return None
    intro = "What was made from what. Every record holds the hash of the one before it: no line can be altered unseen."
    try:
        ledger = Ledger(path)
        ledger.verify()
    except UserError as error:
        return Section("Lineage", intro, tag("p", f"The ledger does not hold: {error}.", class_="trouble"))
    records = current_records(ledger)
    if not records:
        return None
    return Section("Lineage", intro, _graph(records), _records(run, ledger, records))


def current_records(ledger: Ledger) -> list[Record]:
    """The latest record of each stage and all that these were made from, oldest first."""
    latest = {record.stage: record for record in ledger.records}
    wanted = {ancestor.id for record in latest.values() for ancestor in ledger.ancestry(record.id)}
    return [record for record in ledger.records if record.id in wanted]


def nodes_of(records: Sequence[Record]) -> list[Node]:
    """A box per record, and one, before all others, for each input that no record made."""
    made = {record.id for record in records}
    external = {id: name for record in records for name, id in record.inputs.items() if id not in made}
    return [
        *(Node(id, name, id[:ID_LETTERS], is_external=True) for id, name in external.items()),
        *(Node(record.id, record.stage, record.id[:ID_LETTERS], list(record.inputs.values())) for record in records),
    ]


def _graph(records: Sequence[Record]) -> Markup:
    nodes = nodes_of(records)
    names = {node.key: node.label for node in nodes}
    description = "; ".join(
        f"{node.label} from {', '.join(names[key] for key in node.inputs)}" for node in nodes if node.inputs
    )

    def draw(width: int) -> Markup:
        return lineage_graph(nodes, "Lineage", f"{description}.", width)

    return chart(None, draw)


def _records(run: RunFolder, ledger: Ledger, records: Sequence[Record]) -> Markup:
    body = [
        (
            record.stage,
            tag("code", record.id[:ID_LETTERS]),
            join(
                *(join(name, " ", tag("code", id[:ID_LETTERS])) for name, id in record.inputs.items()), separator=", "
            ),
            tag("code", record.content_hash[:ID_LETTERS]),
            tag("code", record.code[:ID_LETTERS]),
        )
        for record in records
    ]
    count = len(ledger.records)
    checked = f"The chain of {count} {'record' if count == 1 else 'records'} is unbroken. "
    more = tag("code", f"groundup ledger show {records[-1].id[:ID_LETTERS]}")
    return join(
        table(("stage", "record", "made from", "content", "code"), body),
        tag("p", checked, more, " tells one in full.", class_="fine"),
    )
