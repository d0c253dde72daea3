"""Hold what is installed against a copy of PyPA's advisory database; no network is needed.

    git clone https://github.com/pypa/advisory-database
    .venv/bin/python bench/advisories.py advisory-database

Prints every known vulnerability of an installed version and the date of the newest advisory there,
beyond which nothing is known. Exit 1 where there is one. The entries are in OSV's form: a version
is affected if it is listed, or lies in a range from ``introduced`` to before ``fixed``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One advisory about one installed package."""

    package: str
    version: str
    advisory: str
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        remedy = f"fixed in {', '.join(self.fixed)}" if self.fixed else "no fixed version"
        return f"{self.package} {self.version}: {self.advisory}, {remedy}"


def installed() -> dict[str, str]:
    """Return the version of every package of this environment, by canonical name."""
    found = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in distributions()}
    return dict(sorted(found.items()))


def advisories(database: Path, package: str) -> Iterator[Mapping[str, Any]]:
    """Yield the advisories about a package that were not withdrawn."""
    for path in sorted((database / "vulns" / package).glob("*.yaml")):
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not entry.get("withdrawn"):
            yield entry


def findings(database: Path, packages: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is known against the installed versions."""
    for package, version in packages.items():
        for entry in advisories(database, package):
            affected = [a for a in entry.get("affected", []) if a["package"]["name"] == package]
            if any(_affects(part, version) for part in affected):
                events = [e for part in affected for e in _events(part)]
                fixed = tuple(e["fixed"] for e in events if "fixed" in e)
                yield Finding(package=package, version=version, advisory=entry["id"], fixed=fixed)


def _events(part: Mapping[str, Any]) -> list[Mapping[str, str]]:
    ranges = [r for r in part.get("ranges", []) if r["type"] == "ECOSYSTEM"]
    return [event for each in ranges for event in each["events"]]


def _affects(part: Mapping[str, Any], version: str) -> bool:
    """Whether a version is listed, or the last event up to it opens a range."""
    if version in map(str, part.get("versions", [])):
        return True
    here, is_open = Version(version), False
    for event in _events(part):
        try:
            if "introduced" in event and Version(event["introduced"]) <= here:
                is_open = True
            if "fixed" in event and Version(event["fixed"]) <= here:
                is_open = False
            if "last_affected" in event and Version(event["last_affected"]) < here:
                is_open = False
        except InvalidVersion:  # an old entry: its list of versions has been asked
            continue
    return is_open


def newest(database: Path) -> str:
    """Return the date of the newest advisory, from the lines that say so: there are thousands."""
    dates = (
        datetime.fromisoformat(found[1].replace("Z", "+00:00"))
        for path in database.glob("vulns/*/*.yaml")
        if (found := re.search(r"^published: ['\"]?([^'\"\n]+)", path.read_text("utf-8"), re.M))
    )
    return f"{max(dates):%Y-%m-%d}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    database = parser.parse_args().database
    if not (database / "vulns").is_dir():
        sys.stderr.write(f"error: {database} is no checkout of PyPA's advisory database\n")
        return 2
    packages = installed()
    found = list(findings(database, packages))
    for finding in found:
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(
        f"{len(packages)} packages, {len(found)} known vulnerabilities; advisories up to "
        f"{newest(database)}, of newer ones nothing is known here\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
