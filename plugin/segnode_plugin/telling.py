"""The channels by which people are told: e-mail and webhook."""

from __future__ import annotations

import http.client
import json
import logging
import smtplib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime, make_msgid
from typing import Protocol
from urllib.parse import urlsplit

from segnode_contract.alerts import SMTP_LOGIN, WEBHOOK_TOKEN, Alerts
from segnode_contract.errors import NotTold, SettingsError
from segnode_plugin.notice import Notice
from segnode_plugin.reaching import NoRedirect, reason_of

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0


class Channel(Protocol):
    """A way to tell people. Both methods raise `NotTold`."""

    @property
    def name(self) -> str: ...
    def tell(self, notice: Notice) -> None: ...
    def check(self) -> str: ...


def channels(alerts: Alerts, environ: Mapping[str, str]) -> tuple[Channel, ...]:
    """Return the channels that the settings name, none for none.

    Raises
    ------
    SettingsError
        If a variable is missing, or the certificate cannot be read.
    """
    secrets = alerts.secrets(environ)
    found: list[Channel] = []
    if alerts.email_to:
        found.append(Mail(alerts, secrets))
    if alerts.webhook:
        found.append(Webhook(alerts, secrets))
    return tuple(found)


class Mail:
    """E-mail by SMTP."""

    name = "email"

    def __init__(self, alerts: Alerts, secrets: Mapping[str, str]) -> None:
        self._alerts = alerts
        self._login = [secrets[name] for name in SMTP_LOGIN if name in secrets]
        self._trust = _trust(alerts)
        self._server = f"The mail server {alerts.smtp_host}:{alerts.port}"

    def tell(self, notice: Notice) -> None:
        """Send one e-mail to all.

        Raises
        ------
        NotTold
            If the server did not take it for any of them.
        """
        mail = EmailMessage(policy=SMTP)
        mail["Subject"] = notice.subject
        mail["From"] = self._alerts.email_from
        mail["To"] = ", ".join(self._alerts.email_to)
        mail["Date"] = localtime()
        mail["Message-ID"] = make_msgid(domain=self._alerts.email_from.partition("@")[2])
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence answers it
        mail.set_content(notice.text)
        with self._link() as link:
            refused = link.send_message(mail)
        if refused:
            codes = ",".join(sorted({str(code) for code, _ in refused.values()}))
            log.warning("alert not told to all", extra={"refused": len(refused), "codes": codes})

    def check(self) -> str:
        """Speak to the server as far as one can without a message, and say how it is.

        Raises
        ------
        NotTold
            If a message would fail, too.
        """
        with self._link() as link:
            tls = isinstance(link.sock, ssl.SSLSocket)
        said = "with TLS" if tls else "without encryption"
        return f"{self._alerts.smtp_host}:{self._alerts.port} {said}"

    @contextmanager
    def _link(self) -> Iterator[smtplib.SMTP]:
        with self._translated():
            link = self._connected()
            try:
                if self._alerts.smtp_tls == "starttls":
                    link.starttls(context=self._trust)
                link.ehlo_or_helo_if_needed()
                if self._login:
                    link.login(*self._login)
                yield link
                # what it took it took, whatever it says at the end
                with suppress(OSError):
                    link.quit()
            finally:
                link.close()

    def _connected(self) -> smtplib.SMTP:
        host, port = self._alerts.smtp_host, self._alerts.port
        if self._alerts.smtp_tls == "tls":
            return smtplib.SMTP_SSL(host, port, timeout=_TIMEOUT_S, context=self._trust)
        return smtplib.SMTP(host, port, timeout=_TIMEOUT_S)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise self._failure("mail-certificate", _untrusted(error)) from error
        except smtplib.SMTPAuthenticationError as error:
            why = f"refuses {SMTP_LOGIN[0]} and its password ({error.smtp_code}); set both anew"
            raise self._failure("mail-password", why) from error
        except smtplib.SMTPNotSupportedError as error:
            why = "lacks STARTTLS or a login; see [alerts] smtp_tls and smtp_port"
            raise self._failure("mail-refused", why) from error
        except smtplib.SMTPRecipientsRefused as error:
            code = next(iter(error.recipients.values()))[0]
            raise self._failure("mail-refused", f"refuses every recipient ({code})") from error
        except smtplib.SMTPResponseException as error:
            raise self._failure("mail-refused", f"answers {error.smtp_code}") from error
        except OSError as error:  # smtplib's other errors are of it, too
            why = (
                f"does not answer as one ({reason_of(error)}); see [alerts] smtp_host and smtp_port"
            )
            raise self._failure("mail-unreachable", why) from error

    def _failure(self, code: str, why: str) -> NotTold:
        return NotTold(f"{self._server} {why}.", code=code)


class Webhook:
    """A POST of JSON."""

    name = "webhook"

    def __init__(self, alerts: Alerts, secrets: Mapping[str, str]) -> None:
        self._url = alerts.webhook
        parts = urlsplit(alerts.webhook)
        self._tls = parts.scheme == "https"
        self._address = (parts.hostname or "", parts.port or (443 if self._tls else 80))
        self._headers = {"Content-Type": "application/json", "User-Agent": "segnode"}
        if WEBHOOK_TOKEN in secrets:
            self._headers["Authorization"] = f"Bearer {secrets[WEBHOOK_TOKEN]}"
        self._trust = _trust(alerts)
        self._opener = urllib.request.build_opener(
            NoRedirect(),
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=self._trust),
        )
        # its path may be a password
        self._server = f"The webhook at {self._address[0]}:{self._address[1]}"

    def tell(self, notice: Notice) -> None:
        """Send one POST.

        Raises
        ------
        NotTold
            If the answer is none, or not one of success.
        """
        data = json.dumps(notice.to_json()).encode()
        request = urllib.request.Request(  # noqa: S310 # http and https only, see the settings
            self._url, data, self._headers, method="POST"
        )
        with self._translated():
            self._opener.open(request, timeout=_TIMEOUT_S).close()

    def check(self) -> str:
        """Connect, send nothing, and say how it is.

        Raises
        ------
        NotTold
            If there is nobody, or nobody to trust.
        """
        host, port = self._address
        with self._translated(), socket.create_connection(self._address, _TIMEOUT_S) as link:
            if self._tls:
                self._trust.wrap_socket(link, server_hostname=host).close()
        return f"{host}:{port} {'with TLS' if self._tls else 'on this machine'}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except urllib.error.HTTPError as error:
            error.close()
            why = f"answers {error.code}; see [alerts] webhook and {WEBHOOK_TOKEN}"
            raise self._failure("webhook-refused", why) from error
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise self._failure("webhook-certificate", _untrusted(cause)) from error
            why = f"does not answer ({reason_of(error)}); see [alerts] webhook"
            raise self._failure("webhook-unreachable", why) from error

    def _failure(self, code: str, why: str) -> NotTold:
        return NotTold(f"{self._server} {why}.", code=code)


def _trust(alerts: Alerts) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if alerts.certificate:
        try:
            context.load_verify_locations(alerts.certificate)
        except OSError as error:
            why = "no certificate is in it" if isinstance(error, ssl.SSLError) else error.strerror
            raise SettingsError(
                f"[alerts] certificate names {alerts.certificate}, which cannot be read ({why})."
            ) from error
    return context


def _untrusted(error: ssl.SSLCertVerificationError) -> str:
    return f"is not trusted ({error.verify_message}); name its authority in [alerts] certificate"
