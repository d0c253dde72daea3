"""The command line: one file per verb, loaded when it is called.

A verb parses, calls the library, prints. Results go to stdout, everything else to stderr.
Exit codes: 0 fine, 1 failed, 2 misuse, 3 over budget, 130 interrupted.
"""

from __future__ import annotations

from edgesparse.cli._group import VerbGroup

VERBS = {
    "plan": "edgesparse.cli.plan:plan",
    "prune": "edgesparse.cli.prune:prune",
    "compress": "edgesparse.cli.compress:compress",
    "search": "edgesparse.cli.search:search",
    "recover": "edgesparse.cli.recover:recover",
    "inspect": "edgesparse.cli.inspect:inspect",
    "evaluate": "edgesparse.cli.evaluate:evaluate",
    "generate": "edgesparse.cli.generate:generate",
    "export": "edgesparse.cli.export:export",
    "validate": "edgesparse.cli.validate:validate",
    "run": "edgesparse.cli.run:run",
    "bench": "edgesparse.cli.bench:bench",
    "report": "edgesparse.cli.report:report",
    "device": "edgesparse_device.cli:device",
    "demo": "edgesparse.cli.demo:demo",
    "doctor": "edgesparse.cli.doctor:doctor",
    "completion": "edgesparse.cli.completion:completion",
}

main = VerbGroup(
    "edgesparse",
    verbs=VERBS,
    help="A PyTorch model and a memory budget in, a proven Core ML or ExecuTorch file out.",
    epilog=(
        "The usual way: plan, compress, evaluate, export, validate. "
        "'edgesparse demo' goes all the way with the bundled model."
    ),
)
