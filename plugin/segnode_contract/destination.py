"""Destinations: other archives that results, and if wanted the images, are sent on to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from segnode_contract.errors import SettingsError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LAST_PORT = 65535


class DeliveryState(StrEnum):
    """Where a delivery, one job's result to one destination, stands."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


def failed_hint(count: int) -> str:
    """Return the sentence on so many failed deliveries, empty for none."""
    if not count:
        return ""
    what = "1 delivery" if count == 1 else f"{count} deliveries"
    return f"{what} to other archives failed; `segnode deliveries` says which, and why."


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """An archive that takes C-STORE (`aet`, `host`, `port`) or STOW-RS (`url`)."""

    name: str
    aet: str = ""
    """Its AE title; empty where it takes STOW-RS."""
    host: str = ""
    port: int = 104
    url: str = ""
    """Its DICOMweb root; empty where it takes C-STORE."""
    certificate: str = ""
    """PEM file of the only certificate to trust; empty where a public authority vouches for it."""
    images: bool = False
    """Send the images too that a result was made from."""
    models: tuple[str, ...] = ()
    """Send results of these models only; empty for all."""

    @property
    def peer(self) -> str:
        """What sentences call it: name and address."""
        where = self.url or f"{self.aet} at {self.host}:{self.port}"
        return f"'{self.name}' ({where})"

    @property
    def variables(self) -> tuple[str, str]:
        """Names of the environment variables that hold its user and password."""
        prefix = f"SEGNODE_DESTINATION_{self.name.upper()}"
        return f"{prefix}_USER", f"{prefix}_PASSWORD"

    def login(self, environ: Mapping[str, str]) -> tuple[str, str]:
        """Return user and password, both empty where it asks for none.

        Raises
        ------
        SettingsError
            If one is set without the other.
        """
        user, password = (environ.get(name, "") for name in self.variables)
        if bool(user) != bool(password):
            given, lacking = self.variables if user else self.variables[::-1]
            raise SettingsError(
                f"The environment variable {given} is set and {lacking} is not; destination "
                f"{self.peer} needs both, or neither."
            )
        return user, password

    def takes(self, model: str) -> bool:
        """Return whether results of `model` go there."""
        return not self.models or model in self.models


def check_destinations(destinations: Sequence[Destination]) -> None:
    """Refuse destinations that cannot be meant.

    Raises
    ------
    SettingsError
        Naming the destination, by its number from 1.
    """
    for number, one in enumerate(destinations, 1):
        where = f"[[destinations]] {number}"
        if not _NAME.fullmatch(one.name):
            raise SettingsError(
                f"{where} name is '{one.name}'; small letters, digits and _ make one, since the "
                "variables of its user and password bear it."
            )
        _check_address(one, where)


def _check_address(one: Destination, where: str) -> None:
    if bool(one.url) == bool(one.aet or one.host):
        raise SettingsError(
            f"{where} needs either aet and host, for C-STORE, or url, for STOW-RS, and not both."
        )
    if one.url:
        if one.certificate and not Path(one.certificate).is_absolute():
            raise SettingsError(
                f"{where} certificate is '{one.certificate}'; a whole path is needed, from / on."
            )
        if not re.match(r"https?://[^/@\s]+", one.url) or "@" in one.url:
            raise SettingsError(
                f"{where} url is no http:// or https:// address without a password in it; the "
                f"environment variables {' and '.join(one.variables)} hold those."
            )
        return
    if not (one.aet and one.host):
        lacking = "host" if one.aet else "aet"
        raise SettingsError(f"{where} has no '{lacking}'; C-STORE needs aet and host.")
    if len(one.aet) > 16 or not one.aet.isascii() or "\\" in one.aet:
        raise SettingsError(f"{where} aet is '{one.aet}'; an AE title has 16 characters at most.")
    if not 0 < one.port <= _LAST_PORT:
        raise SettingsError(f"{where} port is {one.port}; ports go from 1 to {_LAST_PORT}.")
    if one.certificate:
        raise SettingsError(f"{where} has 'certificate', which goes with url only.")
