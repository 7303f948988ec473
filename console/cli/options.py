"""Options that every command shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from console.settings import Settings, load_settings

Home = Annotated[Path | None, typer.Option("--home", help="Workspace; default: .steady or STEADYHAND_HOME.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")]


def settings_of(home: Path | None) -> Settings:
    return load_settings(home=home)
