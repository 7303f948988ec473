"""Settings: one frozen object from `STEADYHAND_*` and one TOML file. Limits on actions live in policy files, never here."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from state.errors import InputError


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path = Path(".steady")
    """The workspace: database, keys, data, models, logs."""
    database_url: str | None = None
    """None keeps the state in SQLite inside the workspace."""
    mlflow_tracking_uri: str | None = None
    """None keeps MLflow embedded in the workspace."""
    notify_urls: list[str] = []
    """Apprise addresses; they hold secrets, so they are never printed."""
    language_model: str | None = None
    """`PROVIDER:NAME` of the model that reads goals in free words; None reads the fixed sentences only. The provider's
    package takes its key from the environment: no setting holds one."""
    policy_dir: Path | None = None
    """None takes the shipped policy set."""
    tick_seconds: float = 5.0
    """Pause between two looks in live operation."""

    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home.resolve() / 'steady.db'}"


def load_settings(environ: Mapping[str, str] | None = None, *, home: Path | None = None) -> Settings:
    """Settings from `steadyhand.toml` beside the caller, overridden by `STEADYHAND_*`, overridden by `home`.

    Raises:
        InputError: a key or a value is wrong; the message names it.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, object] = {}
    file = Path(environ.get("STEADYHAND_CONFIG", "steadyhand.toml"))
    if file.is_file():
        try:
            values |= tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise InputError(f"{file}: {exc}", remedy="Correct the file or remove it") from exc
    for name in Settings.model_fields:
        given = environ.get(f"STEADYHAND_{name.upper()}")
        if given is not None:
            values[name] = given.split() if name == "notify_urls" else given
    if home is not None:
        values["home"] = home
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"setting {field}: {first['msg']}", remedy=f"Set it in {file} or as STEADYHAND_{field.upper()}"
        ) from exc
