"""`slimrun-export BUNDLE OUT --to TARGET`: the files that another engine loads, checked against the bundle.

The group `export` makes the same a stage of a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slimrun.evaluation.source.file import decoded
from slimrun.ops.export import Exported, Target, targets
from slimrun.ops.export.base import AUTO
from slimrun.ops.model.base import Model
from slimrun.ops.model.own import Own
from slimrun.runner.display import Stages, print_anything, print_table
from slimrun.runner.folder import ARTIFACT, EXPORT
from slimrun.runner.status import DONE, WRONG

OPTIONS = ("dtype", "shard_gb", "weights_alone")


def main() -> None:
    """Exit status 0 done, 2 the bundle is damaged or not what the target can hold (one line on stderr)."""
    print_anything()
    known = targets()
    parser = argparse.ArgumentParser(prog="slimrun-export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a run, or its `artifact`")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    parser.add_argument("--to", required=True, metavar="TARGET", help=", ".join(known))
    parser.add_argument("--dtype", help="of the tensors that stay float: auto (as in the bundle), float16, ...")
    parser.add_argument("--shard-gb", type=float, help="the most that one weight file takes, in 10**9 bytes")
    parser.add_argument(
        "--weights-alone", metavar="KIND", help="linears with float inputs: int8, or float for vLLM-CPU"
    )
    parser.add_argument(
        "--verify-text", type=Path, metavar="FILE", help="compare how well bundle and export predict it"
    )
    arguments = parser.parse_args()
    inner = arguments.bundle / ARTIFACT
    source = inner if inner.is_dir() else arguments.bundle
    try:
        text = _text(arguments.verify_text)
        if arguments.to not in known:
            raise ValueError(f"--to {arguments.to}: no such target; allowed: {', '.join(known)}")
        target = built(known[arguments.to], {name: getattr(arguments, name) for name in OPTIONS})
        _check_place(arguments.out, source)
        exported = target.run(source, arguments.out)
        show(exported)
        if text is not None:
            from slimrun.ops.export.text import check_text

            checks = check_text(target, source, exported, text)
            print_table(
                f"{target.name}: the text", ["what", "found"], [[check.what, check.outcome] for check in checks]
            )
    except (ValueError, OSError) as error:
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"slimrun-export: {as_typed(told)}", file=sys.stderr)
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
    return re.sub(rf"(?<![\w.])({'|'.join(OPTIONS)})=", lambda option: f"--{option[1].replace('_', '-')} ", text)


def check(targets: Mapping[str, Target], model: Model, readable: bool) -> None:
    """ValueError names the target that cannot hold the model, as far as its config tells; loads no weight.

    `readable` is whether the bundle can be read back here.
    """
    if not targets:
        return
    if not readable:
        raise ValueError(f"export={next(iter(targets))} reads the bundle back; allowed: compress=native, nz, none")
    if isinstance(model, Own):
        raise ValueError(f"export={next(iter(targets))} needs a model of transformers; allowed: export=none")
    config = model.config().to_dict()
    dtype = config.get("dtype") or "float32" if model.dtype == AUTO else model.dtype
    reader = model.reader()  # None until the model was fetched
    fast = getattr(reader.tokenizer, "backend_tokenizer", None) if reader else None
    for name, target in targets.items():
        with _named(name):
            target.check({**config, "dtype": str(dtype)})
            if reader:
                target.check_tokenizer(json.loads(fast.to_str()) if fast else None)


def write(targets: Mapping[str, Target], artifact: Path, output: Path, stages: Stages) -> list[Exported]:
    """Export the bundle into `output`/export, a folder a target."""
    done = []
    for name, target in targets.items():
        with stages("export", name), _named(name):
            done.append(target.run(artifact, output / EXPORT / name))
    return done


@contextmanager
def _named(target: str) -> Iterator[None]:
    """A ValueError begins with what the user typed."""
    try:
        yield
    except ValueError as error:
        told = f"export.{target}.{error}" if str(error).startswith("dtype=") else f"export={target}: {error}"
        raise ValueError(told.replace("give dtype=", f"give export.{target}.dtype=")) from error


def _check_place(out: Path, bundle: Path) -> None:
    """ValueError when `out` is there already, cannot be made, or lies in the bundle or around it."""
    for place in (out, *out.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                kind = "a link to nothing" if place.is_symlink() and not place.exists() else "a file"
                raise ValueError(f"{place} is {kind}; remove it, or give another folder")
            break
    whole, inner = out.resolve(), bundle.resolve()
    if whole.is_relative_to(inner) or inner.is_relative_to(whole):
        raise ValueError(f"{out} and the bundle {bundle} lie one in the other; give a folder beside it")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is there already; remove it, or give another folder")


def _text(file: Path | None) -> str | None:
    """What the file holds; ValueError names it as it was given."""
    try:
        return None if file is None else decoded(file, "UTF-8 text")
    except ValueError as error:
        raise ValueError(str(error).replace("path=", "--verify-text ", 1)) from error


def show(exported: Exported) -> None:
    """What was changed, what was checked, where it lies, and how it is served."""
    if exported.changes:
        rows = [[change.what, change.where, change.why] for change in exported.changes]
        print_table(f"{exported.target}: changed", ["what", "where", "why"], rows)
    print_table(
        f"{exported.target}: checked", ["what", "found"], [[check.what, check.outcome] for check in exported.checks]
    )
    print(f"export: {exported.folder.absolute()}")
    print(f"serve: {exported.command}")
