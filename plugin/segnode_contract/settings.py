"""Settings: what the administrator decides (`segnode.toml`) and where things are (environment)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from segnode_contract.alerts import Alerts, check_alerts
from segnode_contract.condition import read_condition
from segnode_contract.destination import Destination, check_destinations
from segnode_contract.errors import SettingsError
from segnode_contract.form import AUTO, SETTINGS
from segnode_contract.route import PriorityRule, RequiredSeries, Route, check_routes
from segnode_contract.spelling import hint
from segnode_contract.toml_error import not_toml, not_utf8

T = TypeVar("T")

_LONGEST_STOP_S = 50.0
_DAY_H = 24.0
_KINDS = {
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}
MODELS = "models"
"""Folder of the models that were added, in a node's data folder."""
ROLES = ("administrator", "operator", "viewer", "monitor", "worker")
"""``operator``: retries, cancels, runs and withdraws. ``monitor``: reads /metrics and no more."""
NEEDED_ROLES = ("administrator", "viewer", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    name: str
    """Device Serial Number of every result, and what pages call this node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where Orthanc listens. Beyond loopback only with a certificate, or `insecure = true`."""

    host: str = "127.0.0.1"
    certificate: str = ""
    """PEM file with certificate and key; empty for plain HTTP."""
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    quiet_s: float = 5.0
    """A series is complete when no instance came for this long."""
    study_quiet_s: float = 30.0
    """A study is complete when no instance came to any of its series for this long."""
    rescan_s: float = 3600.0
    """How often the archive's list of series is compared with the ledger's."""
    rescan_days: float = 3.0
    """Series with an image since then are compared by their number of instances too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    lease_s: float = 60.0
    """A worker that is silent for this long has lost its job."""
    deliveries: int = 3
    """A job that took this many workers or model processes down with it is dead."""
    ring_s: float = 30.0
    """A ring that no worker followed for this long is sent again: Redis may have been wiped."""
    back_off_s: tuple[float, ...] = (5.0, 15.0, 45.0, 120.0, 300.0, 600.0, 900.0)
    """Waits after transient errors in a row; the last is repeated."""
    give_up_h: float = 72.0
    """A job that only transient errors kept from its end is dead after this many hours."""
    stage_s: float = 600.0
    """A stage that takes longer fails the job; inference has the limit of its model's card."""
    free_mb: int = 2048
    """A worker whose spool has less free space takes no new job."""
    stop_s: float = 40.0
    """A worker that is asked to stop hands the job at hand back after this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    name: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """A DICOM peer that may send to us."""

    aet: str
    host: str
    port: int = 104


@dataclass(frozen=True, slots=True, kw_only=True)
class Dicom:
    aet: str = "SEGNODE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """When background work is done."""

    one_in: int = 10
    """Of so many jobs one is background work, while routine work waits too."""
    from_hour: float = 0.0
    """Background work begins between these hours only, in the workers' time zone; the window may
    hold midnight."""
    to_hour: float = 24.0

    def open_at(self, hour: float) -> bool:
        """Return whether background work may begin at this hour of the day."""
        if self.from_hour <= self.to_hour:
            return self.from_hour <= hour < self.to_hour
        return hour >= self.from_hour or hour < self.to_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """How models run on each worker's machine."""

    memory_mb: int = 0
    """What all loaded models may take on their device together; 0 for nine tenths of a GPU's free
    memory, or half of the machine's where there is none."""
    sandbox: bool = True
    """Whether added models run in a cell only; without one they can read what the worker can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """How results are written."""

    form: str = AUTO
    """One of `form.SETTINGS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all workers of a node follow, wherever they run."""

    node: Node
    limits: Limits
    background: Background
    dicom: Dicom = Dicom()
    destinations: tuple[Destination, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return tables as in `segnode.toml`."""
        return asdict(self)

    @classmethod
    def from_json(cls, tables: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave."""
        where = "the node's settings in the ledger"
        return cls(
            node=_read(Node, tables["node"], f"{where}: [node]"),
            limits=_read(Limits, tables["limits"], f"{where}: [limits]"),
            background=_read(Background, tables["background"], f"{where}: [background]"),
            dicom=_read(Dicom, tables.get("dicom", {}), f"{where}: [dicom]"),
            destinations=tuple(
                _read(Destination, table, f"{where}: [[destinations]] {number}")
                for number, table in enumerate(tables.get("destinations", ()), 1)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`segnode.toml`."""

    node: Node
    listen: Listen
    intake: Intake
    limits: Limits
    dicom: Dicom
    users: tuple[User, ...]
    modalities: tuple[Modality, ...]
    routes: tuple[Route, ...]
    priorities: tuple[PriorityRule, ...] = ()
    background: Background = Background()
    models: Models = Models()
    results: Results = Results()
    destinations: tuple[Destination, ...] = ()
    alerts: Alerts = Alerts()  # noqa: RUF009 # frozen

    @property
    def shared(self) -> Shared:
        """What workers on other machines follow too."""
        return Shared(
            node=self.node,
            limits=self.limits,
            background=self.background,
            dicom=self.dicom,
            destinations=self.destinations,
        )

    def role(self, user: str) -> str | None:
        """Return the role of `user`, or None for a stranger."""
        return next((u.role for u in self.users if u.name == user), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """Where archive, ledger and broker are, from `SEGNODE_*` variables."""

    data: Path
    ledger_url: str
    broker_url: str
    archive_url: str
    archive_user: str
    archive_password: str
    archive_certificate: str = ""
    """PEM file of the one certificate that the archive is trusted by; empty where a public
    authority vouches for it."""


def load_settings(path: Path) -> Settings:
    """Read `segnode.toml`.

    Raises
    ------
    SettingsError
        Naming the file and the key that is missing, unknown or of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
        data = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(
            f"The settings file {path} cannot be read ({error.strerror}); "
            "SEGNODE_CONFIG names another one."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"The settings file {path} is not UTF-8: {not_utf8(error)}.") from error
    except tomllib.TOMLDecodeError as error:
        wrong = not_toml(text, error)
        raise SettingsError(f"The settings file {path} is not TOML: {wrong}.") from error
    _known(data, {field.name for field in fields(Settings)}, f"{path}")

    def one(key: str, kind: type[T]) -> T:
        return _read(kind, data.get(key, {}), f"{path}: [{key}]")

    def many(key: str, kind: type[T]) -> tuple[T, ...]:
        if isinstance(data.get(key), dict):
            raise SettingsError(
                f"{path}: [{key}] stands in single brackets; write [[{key}]] above each of them."
            )
        if not isinstance(data.get(key, []), list):
            raise SettingsError(f"{path}: {key} is {data[key]!r}; [[{key}]] tables are needed.")
        items = enumerate(data.get(key, []), 1)
        return tuple(_read(kind, item, f"{path}: [[{key}]] {number}") for number, item in items)

    settings = Settings(
        node=one("node", Node),
        listen=one("listen", Listen),
        intake=one("intake", Intake),
        limits=one("limits", Limits),
        dicom=one("dicom", Dicom),
        users=many("users", User),
        modalities=many("modalities", Modality),
        routes=many("routes", Route),
        priorities=many("priorities", PriorityRule),
        background=one("background", Background),
        models=one("models", Models),
        results=one("results", Results),
        destinations=many("destinations", Destination),
        alerts=one("alerts", Alerts),
    )
    _check(settings, path)
    return settings


def load_connections(environ: Mapping[str, str]) -> Connections:
    """Read the `SEGNODE_*` variables.

    Raises
    ------
    SettingsError
        Naming the variable that is missing.
    """
    names = {field.name: f"SEGNODE_{field.name.upper()}" for field in fields(Connections)}
    needed = [names[field.name] for field in fields(Connections) if field.default is MISSING]
    missing = [name for name in needed if not environ.get(name)]
    if missing:
        raise SettingsError(
            f"The environment variable {missing[0]} is not set; `segnode up` writes it to "
            "the file `environment` in its data folder."
        )
    values: dict[str, Any] = {key: environ.get(name, "") for key, name in names.items()}
    return Connections(**{**values, "data": Path(values["data"])})


def _read(kind: type[T], data: Any, where: str) -> T:
    if isinstance(data, list) and where.endswith("]"):
        raise SettingsError(f"{where} stands in double brackets; write it once, in single ones.")
    if not isinstance(data, dict):
        raise SettingsError(f"{where} is {data!r}; a table is needed.")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type] # a dataclass
    _known(data, set(known), where)
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = _value(data[name], str(field.type), f"{where} {name}")
        elif field.default is MISSING:
            raise SettingsError(f"{where} has no '{name}'; add it.")
    return kind(**values)


def _value(value: Any, annotation: str, where: str) -> Any:
    if annotation.startswith("Condition"):
        return read_condition(value, where)
    if annotation == "tuple[RequiredSeries, ...]":
        if not isinstance(value, list):
            raise SettingsError(f"{where} is {value!r}; [[routes.series]] tables are needed.")
        items = enumerate(value, 1)
        return tuple(_read(RequiredSeries, item, f"{where} {number}") for number, item in items)
    if annotation == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation == "tuple[float, ...]":
        if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
            return tuple(float(item) for item in value)
        raise SettingsError(f"{where} is {value!r}; a list of numbers is needed.")
    if annotation == "tuple[str, ...]":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise SettingsError(f"{where} is {value!r}; a list of texts is needed.")
    if type(value).__name__ != annotation:
        raise SettingsError(f"{where} is {value!r}; {_KINDS[annotation]} is needed.")
    return value


def _known(data: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise SettingsError(f"{where} has an unknown key '{key}'{hint(key, known)}.")


def _check(settings: Settings, path: Path) -> None:
    for number, user in enumerate(settings.users, 1):
        if user.role not in ROLES:
            raise SettingsError(
                f"{path}: [[users]] {number} role is '{user.role}'; "
                f"it must be one of {', '.join(ROLES)}."
            )
    if settings.results.form not in SETTINGS:
        raise SettingsError(
            f"{path}: [results] form is '{settings.results.form}'; it must be one of "
            f"{', '.join(SETTINGS)}{hint(settings.results.form, SETTINGS)}."
        )
    named = {
        "routes": [route.name for route in settings.routes],
        "users": [user.name for user in settings.users],
        "destinations": [destination.name for destination in settings.destinations],
    }
    for what, names in named.items():
        for number, name in enumerate(names, 1):
            if name in names[: number - 1]:
                raise SettingsError(
                    f"{path}: [[{what}]] {number} has the name of one above; two {what} are called "
                    f"'{name}'."
                )
    try:
        check_routes(settings.routes, settings.priorities)
        check_destinations(settings.destinations)
        check_alerts(settings.alerts)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.sentence}") from error
    loopback = settings.listen.host in ("127.0.0.1", "::1", "localhost")
    if not (loopback or settings.listen.certificate or settings.listen.insecure):
        raise SettingsError(
            f"{path}: [listen] host is {settings.listen.host}, which others can reach, without "
            "encryption; set certificate to a PEM file, or insecure = true if you accept that."
        )
    _check_numbers(settings, path)


def _check_numbers(settings: Settings, path: Path) -> None:
    for table in (settings.intake, settings.limits, settings.background, settings.models):
        for field in fields(table):
            value = getattr(table, field.name)
            if min(value if isinstance(value, tuple) else (value,)) < 0:
                where = f"{path}: [{type(table).__name__.lower()}] {field.name}"
                raise SettingsError(f"{where} is {value}; it cannot be negative.")
    if settings.limits.stop_s > _LONGEST_STOP_S:
        raise SettingsError(
            f"{path}: [limits] stop_s is {settings.limits.stop_s:g}; a worker is killed a minute "
            f"after it was asked to stop, so that it cannot be more than {_LONGEST_STOP_S:g}."
        )
    if settings.limits.lease_s == 0:
        raise SettingsError(
            f"{path}: [limits] lease_s is 0; a worker needs time to say that it lives."
        )
    hours = settings.background
    for name in ("from_hour", "to_hour"):
        if getattr(hours, name) > _DAY_H:
            raise SettingsError(
                f"{path}: [background] {name} is {getattr(hours, name):g}, which is no window of a "
                "day; hours go from 0 to 24."
            )
    if hours.from_hour == hours.to_hour:
        raise SettingsError(
            f"{path}: [background] is open from {hours.from_hour:g} to {hours.to_hour:g}, which is "
            "no window of a day; 20 to 6 is one, and 0 to 24 is the whole day."
        )
    if hours.one_in < 2:
        raise SettingsError(
            f"{path}: [background] one_in is {hours.one_in}; with fewer than 2 nothing else runs."
        )
