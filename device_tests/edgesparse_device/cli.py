"""``edgesparse device``: find devices, make bundles, run them, compare what came out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgesparse.budget import Budget
from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._options import budget_option, common, force_option, source_option
from edgesparse.errors import DeviceError, ValidationFailed


@click.group(short_help="Run an artifact on devices and keep the proof.")
def device() -> None:
    """Run an artifact on devices and keep the proof.

    A device is host, qemu-arm64, adb:SERIAL, ssh:HOST or mac.
    """


@device.command("list", short_help="What can be used here, or why not.")
@common
def list_found(as_json: bool) -> None:
    """List the devices: what each is, or what it lacks."""
    from edgesparse_device.device import list_devices
    from edgesparse_device.tables import device_table

    with working("looking for devices"):
        found = list_devices()
    if as_json:
        show_json({"devices": [asdict(device) for device in found]})
    else:
        show(device_table(found))


@device.command(short_help="Put an artifact and its cases into one folder.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--from", "model", required=True, metavar="MODEL", help="The compressed model.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write."
)
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Cut cases from it.")
@click.option(
    "--inputs", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="A case's inputs by name, .safetensors or .npz; may be given again.",
)  # fmt: skip
@click.option("--count", default=3, show_default=True, help="Cases to cut, or to draw at random.")
@click.option("--seed", default=0, show_default=True, help="Of random inputs.")
@click.option(
    "--tolerance", type=float, default=None,
    help="Largest relative error that counts as right. [default: 0.05]",
)  # fmt: skip
@budget_option
@source_option
@force_option
@common
def bundle(
    artifact: Path, model: str, output: Path, text: Path | None, inputs: tuple[Path, ...],
    count: int, seed: int, tolerance: float | None, budget: Budget | None, source: str | None,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Put ARTIFACT, inputs and the packed model's outputs into one folder.

    Inputs come from --inputs, else from --text, else they are drawn at random. Nothing in the
    folder is executable.
    """
    from edgesparse.cli._models import open_compressed
    from edgesparse.exporting import require_exists
    from edgesparse.runtime.text import read_text
    from edgesparse_device.making import TOLERANCE, make_bundle, read_inputs

    require_exists(artifact)
    with working(f"bundling {artifact.name}"):
        made = make_bundle(
            output, artifact, open_compressed(model, source),
            inputs=read_inputs(inputs) if inputs else None,
            text=read_text(text) if text else None,
            count=count, seed=seed, tolerance=TOLERANCE if tolerance is None else tolerance,
            budget=budget, force=force,
        )  # fmt: skip
    if as_json:
        show_json({"path": str(output), "sha256": made.sha256, "cases": len(made.cases)})
    else:
        show(f"saved {output}   {len(made.cases)} cases for {made.artifact}")


@device.command(short_help="Run bundles on devices.")
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--device", "devices", default="host", show_default=True, help="Comma-separated.")
@click.option(
    "-o", "--records", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Keep BUNDLE/DEVICE.json here; what is there already is not run again.",
)  # fmt: skip
@click.option("--runs", default=10, show_default=True, help="Timed executions of a case.")
@click.option("--warmup", default=2, show_default=True, help="Executions before the clock.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds a case may take.")
@click.option("--force", is_flag=True, help="Run again what the records already have.")
@common
def run(
    bundles: tuple[Path, ...], devices: str, records: Path | None, runs: int, warmup: int,
    limit: float, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run every case of the BUNDLES on every device, and hold outputs against references.

    A device that fails does not keep the others from running. Exits 1 when a case is wrong, a
    device failed, or the budget is broken.
    """
    from rich.text import Text

    from edgesparse_device.bundle import open_bundle
    from edgesparse_device.comparing import agreement
    from edgesparse_device.device import Effort, devices_named
    from edgesparse_device.running import Run, run_bundle
    from edgesparse_device.tables import record_table, record_title

    found, opened = devices_named(devices), [open_bundle(bundle) for bundle in bundles]
    effort = Effort(warmup=warmup, runs=runs, limit=limit)
    results = []
    for bundle in opened:
        folder = records / bundle.path.resolve().name if records else None
        with working(f"running {bundle.artifact}") as progress:
            run_of = Run(effort=effort, records=folder, force=force)
            results.append(run_bundle(bundle, found, run_of, progress))
    flat = [record for of_bundle in results for record in of_bundle]
    if as_json:
        show_json({"records": [record.to_json() for record in flat]})
    else:
        for of_bundle in results:
            for record in of_bundle:
                show(record_title(record), *([record_table(record)] if record.cases else []))
                show(Text(record.verdict), "")
            show(*map(Text, agreement(of_bundle)), "")
    bad = [f"{record.device.name}: {record.verdict}" for record in flat if not record.ok]
    if bad:
        raise DeviceError("; ".join(bad))


@device.command(short_help="What changed between two records.")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--error", default=1e-3, show_default=True, help="Growth of a relative error.")
@click.option("--tokens", default=0.0, show_default=True, help="Loss of token agreement.")
@click.option("--latency", default=0.2, show_default=True, help="Growth of the median time.")
@click.option("--memory", default=0.1, show_default=True, help="Growth of the peak memory.")
@click.option("--size", default=0.01, show_default=True, help="Growth of the file.")
@click.option("--same-tokens", is_flag=True, help="Both must give the very same tokens.")
@common
def compare(
    before: Path, after: Path, error: float, tokens: float, latency: float, memory: float,
    size: float, same_tokens: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show what changed from record BEFORE to record AFTER; exit 1 past the tolerances.

    Times and memory are compared only when both records are of the same real device.
    """
    from edgesparse_device.comparing import Tolerance
    from edgesparse_device.comparing import compare as changes_of
    from edgesparse_device.record import load_record
    from edgesparse_device.tables import change_table

    tolerance = Tolerance(
        error=error, tokens=tokens, latency=latency, memory=memory, size=size,
        same_tokens=same_tokens,
    )  # fmt: skip
    changes = changes_of(load_record(before), load_record(after), tolerance)
    worse = [change for change in changes if change.worse]
    if as_json:
        show_json({"worse": len(worse), "changes": [asdict(change) for change in changes]})
    else:
        show(change_table(changes) if changes else "no change")
    if worse:
        first = worse[0]
        raise ValidationFailed(
            f"{len(worse)} changes outside the tolerance, first {first.case or 'all cases'}: "
            f"{first.what} {first.before} → {first.after}"
        )
