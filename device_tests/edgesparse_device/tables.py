"""What a person sees of devices, records and comparisons."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from edgesparse.budget import format_size
from edgesparse.report.tables import columns
from edgesparse.report.words import NOTHING, percent
from edgesparse_device.comparing import Change
from edgesparse_device.device import Listed
from edgesparse_device.record import CaseResult, Record, Status


def device_table(devices: Iterable[Listed]) -> Table:
    """Return one line per device: what it is, or why it cannot be used."""
    table = columns("device", "processor", "system or what is missing", left=3)
    for device in devices:
        if device.info is None:
            table.add_row(Text(device.name), NOTHING, Text(device.reason, style="dim"))
        else:
            info = device.info
            emulated = ", emulated" if info.emulated else ""
            table.add_row(
                Text(device.name),
                Text(f"{info.abi}{emulated}"),
                Text(", ".join(filter(None, (info.cpu, info.os)))),
            )
    table.columns[2].no_wrap = False
    return table


def record_table(record: Record) -> Table:
    """Return one line per case; an emulated time is never shown."""
    language = any(case.token_agreement is not None for case in record.cases)
    headers = ["relative error", "max error", "tokens" if language else "top-1"]
    table = columns("", "case", *headers, "load ms", "p50 ms", "p99 ms", "memory", left=2)
    for case in record.cases:
        table.add_row(*_case_cells(case, emulated=record.device.emulated))
    return table


def _case_cells(case: CaseResult, *, emulated: bool) -> list[str | Text]:
    mark = Text(str(case.status), style="green" if case.status is Status.OK else "red")
    name = Text(case.name)
    if not case.outputs:
        return [mark, name, *[NOTHING] * 7]
    worst = max(output.max_abs for output in case.outputs)
    agreement = case.token_agreement if case.tokens else case.outputs[0].top1
    cells: list[str | Text] = [
        mark,
        name,
        f"{case.relative:.1e}",
        f"{worst:.1e}",
        percent(agreement),
    ]
    if emulated:
        cells += [NOTHING, "emulated", "emulated"]
    elif case.latency is not None and case.load_ms is not None:
        times = case.load_ms, case.latency.p50, case.latency.p99
        cells += [f"{ms:.3g}" for ms in times]
    else:
        cells += [NOTHING] * 3
    peak = case.peak_nbytes
    return [*cells, NOTHING if peak is None else format_size(peak)]


def record_title(record: Record) -> Text:
    """Return the line over a record's table."""
    device = record.device
    kind = f"{device.abi}, emulated" if device.emulated else device.abi
    what = ", ".join(filter(None, (kind, device.cpu)))
    file = f"{record.artifact}, {format_size(record.file_nbytes)}"
    if device.placement:
        file += "".join(f", {n} on the {where}" for where, n in device.placement.items())
    return Text(device.name, style="bold").append(f"  ·  {what}  ·  {file}", style="not bold")


def change_table(changes: Iterable[Change]) -> Table:
    """Return one line per change, those outside the tolerance marked."""
    table = columns("", "case", "what", "before", "after", left=3)
    for change in changes:
        mark = Text("worse" if change.worse else "", style="red")
        cells = (change.case or "all", change.what, change.before, change.after)
        table.add_row(mark, *map(Text, cells))
    return table
