"""`slimrun-export BUNDLE OUT --to TARGET`: the files that another engine loads, checked against the bundle."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from slimrun.ops.export import Exported, Target, targets
from slimrun.runner.display import print_anything, print_table

DONE, WRONG = 0, 2


def main() -> None:
    """Exit status 0 done, 2 the bundle is damaged or not what the target can hold (one line on stderr)."""
    print_anything()
    known = targets()
    parser = argparse.ArgumentParser(prog="slimrun-export", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder `artifact` of a run")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    parser.add_argument("--to", required=True, metavar="TARGET", help=", ".join(known))
    parser.add_argument("--dtype", help="of the tensors that stay float: auto (as in the bundle), float16, ...")
    parser.add_argument("--shard-gb", type=float, help="the most that one weight file takes, in 10**9 bytes")
    arguments = parser.parse_args()
    try:
        if arguments.to not in known:
            raise ValueError(f"--to {arguments.to}: no such target; allowed: {', '.join(known)}")
        target = built(known[arguments.to], {"dtype": arguments.dtype, "shard_gb": arguments.shard_gb})
        if arguments.out.exists() and not (arguments.out.is_dir() and not any(arguments.out.iterdir())):
            raise ValueError(f"{arguments.out} is there already; remove it, or give another folder")
        show(target.run(arguments.bundle, arguments.out))
    except (ValueError, OSError) as error:
        print(f"slimrun-export: {as_typed(str(error))}", file=sys.stderr)
        sys.exit(WRONG)
    sys.exit(DONE)


def built(kind: type[Target], options: dict[str, Any]) -> Target:
    """The target with the options that were given; ValueError for one that it does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(given.keys() - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(f"{unknown[0]}={given[unknown[0]]}: {kind.name} has no such option; leave it out")
    return kind(**given)


def as_typed(text: str) -> str:
    """A text that names options as Python does (shard_gb=...) with their names on the command line."""
    return re.sub(r"(?<![\w.])(dtype|shard_gb)=", lambda option: f"--{option[1].replace('_', '-')} ", text)


def show(exported: Exported) -> None:
    """What was changed, what was checked, where it lies, and how it is served."""
    if exported.changes:
        rows = [[change.what, change.where, change.why] for change in exported.changes]
        print_table("changed", ["what", "where", "why"], rows)
    print_table("checked", ["what", "found"], [[check.what, check.found] for check in exported.checks])
    print(f"export: {exported.folder.absolute()}")
    print(f"serve: {exported.command}")
