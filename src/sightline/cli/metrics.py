"""`sightline metrics`"""

from __future__ import annotations

from sightline.cli.output import say, table


def run() -> None:
    """List the metrics: what each tells, which direction is better, where it is defined."""
    from sightline.metrics import list_metrics

    found = list_metrics().values()
    table(["metric", "better", "tells"], [(one.name, one.better, one.summary) for one in found])
    say()
    for one in found:
        options = ", ".join(f"--setting {one.name}.{name}={default}" for name, default in one.options.items())
        base = f"; changed pixels: {one.base}" if one.base else ""
        say(f"{one.name}: {one.reference}{base}" + (f"; {options}" if options else ""))
