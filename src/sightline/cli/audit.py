"""`sightline audit`"""

from __future__ import annotations

import json as to_json
from pathlib import Path
from typing import Annotated, Any

import typer

from sightline.cli.evaluate import Boxes, Masks
from sightline.cli.model import Chosen, takes_a_model
from sightline.cli.output import plain, say, table, tell, waiting, working
from sightline.errors import OutputError, SightlineError

FAIL_ON = {"shortcut": ("shortcut",), "suspected": ("shortcut", "suspected")}
_KNOWN = ("bundled", "torchvision", "timm")  # models that a run may name, without a file or a place to fetch from
_SHOWN = 20


@takes_a_model
def run(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN [RUN_AFTER]", help="One run of sightline batch, or two over the same pictures."),
    ],
    model: Chosen,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="A new folder. [default: RUN-audit]")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Where the pictures are. [default: where they were]")
    ] = None,
    masks: Masks = None,
    boxes: Boxes = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="NAME", help="Whose maps. [default: the first]")
    ] = None,
    budget: Annotated[
        int,
        typer.Option(
            "--budget",
            min=0,
            metavar="N",
            help="Changed pictures that the model may be shown; 0: only look at the maps.",
        ),
    ] = 10_000,
    fail_on: Annotated[
        str | None,
        typer.Option("--fail-on", metavar="WHAT", help="Exit code 1 for a shortcut, or already when one is suspected."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier audit.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The findings as JSON on stdout.")] = False,
) -> None:
    """Find out what a model goes by over a whole run: shortcuts, with evidence and what to do; or what moved between two runs."""
    if fail_on is not None and fail_on not in FAIL_ON:
        raise OutputError(f"--fail-on {fail_on}; expected {' or '.join(FAIL_ON)}")
    if len(runs) > 2:
        raise OutputError(f"{len(runs)} runs are given; expected one to audit, or two to compare")
    place = output if output is not None else Path(f"{runs[-1].name or 'run'}-audit")
    if len(runs) == 2:
        if fail_on is not None:
            raise OutputError("--fail-on is for the audit of one run; audit the second alone")
        _moved(runs, place, masks, boxes, method, seed, force, json)
        return
    announced: list[int] = []
    try:
        with waiting(f"reading {plain(runs[0])}"):
            from sightline.audit.run import audit_run
            from sightline.batch.results import open_run
            from sightline.bundle import check_free

            check_free(place, force)
            opened = open_run(runs[0])
            adapter = _model_of(opened, model) if budget else None
        if fail_on is not None and adapter is None:
            raise OutputError(
                f"--fail-on {fail_on}: nothing can be tried without the model, so that there is no verdict"
            )
        with working() as shown:

            def watch(what: str, done: int, of: int) -> None:
                if what == "trying" and not announced:
                    announced.append(of)
                    tell(f"the model is shown {of:,} pictures, {done:,} of them unchanged (--budget bounds it)")
                shown(what, done, of)

            found = audit_run(
                opened, output=place, model=adapter, data=data, masks=masks, boxes=boxes, method=method, budget=budget, seed=seed,
                force=force, watch=watch,
            )  # fmt: skip
    except KeyboardInterrupt:
        tell("stopped; nothing was written")
        raise typer.Exit(130) from None
    if json:
        say(to_json.dumps(found.record()))
    else:
        _print(found)
        say()
        page = place / "report.html"
        look = plain(page) if page.exists() else f"sightline report {plain(runs[0])} --audit {plain(place)}"
        say(f"findings: {plain(place)}; to look at: {look}")
    if fail_on is not None:
        if not any(one.trials for one in found.tried):
            raise OutputError(
                f"--fail-on {fail_on}: nothing could be tried, so that there is no verdict: {'; '.join(found.notices)}"
            )
        if found.ruling.outcome == "too few":
            raise OutputError(f"--fail-on {fail_on}: there is no verdict. {found.ruling.says}")
        if found.ruling.outcome in FAIL_ON[fail_on]:
            raise typer.Exit(1)


def _model_of(run: Any, model: Chosen) -> Any:
    """The model that was named, or the one that the run names; None where that can't be had, which is said."""
    name = str(run.plan["model"].get("name", ""))
    if model.name != "bundled" or name == "bundled" or any(model.said.values()):
        return model.load()
    if name.partition(":")[0] not in _KNOWN:
        tell(f"the run was made with {plain(name)}; give it with --model, or nothing can be tried")
        return None
    try:
        from sightline.audit.pictures import check_model

        adapter = model.called(name).load()
        check_model(run, adapter)
    except SightlineError as error:
        tell(
            f"the model of the run can't be had, so that nothing can be tried: {plain(error, 600)}. Give it with --model"
        )
        return None
    return adapter


def _print(found: Any) -> None:
    ruling = found.ruling
    say(plain(ruling.says, 1000))
    for line in ruling.because:
        say(f"  {plain(line, 1000)}")
    if ruling.next:
        say()
        say("What to do:")
        for line in ruling.next:
            say(f"  - {plain(line, 1000)}")
    say()
    rows = [(one.name, len(one.members), one.ruling.outcome, *_heat(one)) for one in found.classes[:_SHOWN]]
    parts = [each.part for each in found.classes[0].heat if each.part != "commonest cell"]
    table(["class", "pictures", "verdict", *(f"{part} (even)" for part in parts)], rows)
    if len(found.classes) > _SHOWN:
        say(f"and {len(found.classes) - _SHOWN} more classes")
    tried = [one for one in found.tried if one.trials]
    if tried:
        say()
        table(
            ["class", "tried", "verdict", "taken", "given"],
            [
                (one.candidate.of, one.candidate.place(), one.ruling.outcome, _best(one, "taken"), _best(one, "given"))
                for one in tried[:_SHOWN]
            ],
        )
        say(
            "taken: pictures that lose the class without it; given: pictures of others that win it with it; in brackets the control"
        )
    for name, each in found.disagreements.items():
        say(f"{name}: {len(each)} pictures")
    if found.labels:
        say(f"labels that may be wrong: {len(found.labels)}")
    say(f"shown to the model: {found.forwards:,} pictures")
    for notice in found.notices:
        say(f"note: {plain(notice, 1000)}")


def _heat(one: Any) -> list[str]:
    return [
        "" if each.share.mean is None else f"{each.share.mean:.0%} ({each.even:.0%})"
        for each in one.heat
        if each.part != "commonest cell"
    ]  # fmt: skip


def _best(one: Any, way: str) -> str:
    own = [each for each in one.trials if each.way == way]
    if not own:
        return ""
    best = max(own, key=lambda each: each.flips - each.control)
    return f"{best.flips:.0%} ({best.control:.0%})"


def _moved(
    runs: list[Path],
    place: Path,
    masks: Path | None,
    boxes: Path | None,
    method: str | None,
    seed: int,
    force: bool,
    json: bool,
) -> None:
    with waiting("comparing"):
        from sightline.audit.moved import audit_moved

        found = audit_moved(*runs, output=place, masks=masks, boxes=boxes, method=method, seed=seed, force=force)
    if json:
        say((place / "moved.json").read_text(encoding="utf-8"))
        return
    say(f"{found.about['both']:,} pictures in both runs, maps of {plain(found.about['method'])}; second minus first")
    rows = [
        (one.name, one.pictures, f"{one.answers:.0%}", f"{one.moved:.0%}", one.says)
        for one in found.classes[: _SHOWN + 1]
    ]
    table(["class", "pictures", "answers changed", "heat moved", "what differs"], rows)
    for notice in found.notices:
        say(f"note: {plain(notice, 1000)}")
    say(f"all figures, and the pictures that moved most: {plain(place)}")
