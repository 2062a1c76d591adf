"""`sightline methods`"""

from __future__ import annotations

from sightline.cli.output import say, table


def run() -> None:
    """List the methods: what each shows, what it costs, where it is defined."""
    from sightline.methods import list_methods

    found = list_methods().values()
    table(
        ["method", "needs", "signed", "shows"],
        [(one.name, one.needs, "yes" if one.signed else "", one.summary) for one in found],
    )
    say()
    for one in found:
        options = ", ".join(f"--option {name}={default}" for name, default in one.options.items())
        say(f"{one.name}: {one.reference}" + (f"; {options}" if options else ""))
