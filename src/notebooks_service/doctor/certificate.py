"""The forge's certificate: whether we trust it, and how long still.

Codes: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from notebooks_service.doctor.asking import Answer
from notebooks_service.doctor.findings import Finding, ok, plain, problem, warning

DAY = 86400.0
SOON = 21 * DAY
SELF_SIGNED, SELF_SIGNED_ROOT, NO_ISSUER, NO_LEAF_ISSUER = 18, 19, 20, 21
NOT_YET, EXPIRED, OTHER_HOST, OTHER_ADDRESS = 9, 10, 62, 64
SYSTEM_FILE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Certificate:
    """``answer``: any answer of the forge. ``readable``: the CA file is one.

    ``system_trusts``: with the machine's own list of authorities the connection is good.
    """

    url: str
    ca_file: Path | None
    readable: bool
    answer: Answer
    now: float
    system_trusts: bool = False


def judge_certificate(facts: Certificate) -> list[Finding]:
    parts = urlsplit(facts.url)
    if facts.ca_file is not None and not facts.readable:
        return [
            problem(
                "tls.ca-file",
                f"The file {plain(facts.ca_file)} that `forge_ca_file` names cannot be read, or holds no certificate in PEM form.",
                "Put the certificate of the authority that signed the forge's there, as PEM, readable for the account that runs hub and service.",
            )
        ]
    if parts.scheme != "https":
        return []
    if facts.answer.trouble == "tls":
        return [_refused(facts, parts.hostname or "")]
    if facts.answer.expires is None:
        return []
    left = facts.answer.expires - facts.now
    if left < SOON:
        return [
            warning(
                "tls.expires-soon",
                f"The certificate of {parts.hostname} expires in {max(0, int(left // DAY))} days.",
                "Renew it at the forge; from that day on nobody can sign in, clone or launch.",
            )
        ]
    return [
        ok(
            "tls.trusted",
            f"The certificate of {parts.hostname} is trusted, for {int(left // DAY)} more days.",
        )
    ]


def _refused(facts: Certificate, host: str) -> Finding:
    code = facts.answer.tls_code
    if code == EXPIRED:
        return problem(
            "tls.expired",
            f"The certificate of {host} has expired, or one in its chain has.",
            "Renew it at the forge. If it is good elsewhere, the clock of this machine is wrong.",
        )
    if code == NOT_YET:
        return problem(
            "tls.not-yet",
            f"The certificate of {host} is not valid yet.",
            "Set the clock of this machine, or wait until the day that the certificate begins.",
        )
    if code in (OTHER_HOST, OTHER_ADDRESS):
        return problem(
            "tls.other-host",
            f"The certificate of what answers is not for {host}.",
            "Use a name that the certificate holds as the forge's address, or have it issued for this name too.",
        )
    if code == SELF_SIGNED:
        return problem(
            "tls.self-signed",
            f"The certificate of {host} is signed by itself.",
            "If it is the forge's, put it into a file and name that with `forge_ca_file`; better, have it signed by an authority.",
        )
    if code in (SELF_SIGNED_ROOT, NO_ISSUER, NO_LEAF_ISSUER):
        if facts.ca_file is None and facts.system_trusts:
            return problem(
                "tls.system-authority",
                f"The certificate of {host} is signed by an authority that this machine trusts and Python's own list does not hold.",
                f"Set `forge_ca_file` to the machine's list, {_system_file()}.",
            )
        if facts.ca_file is not None:
            return problem(
                "tls.other-authority",
                f"The certificate of {host} is not signed by an authority in {plain(facts.ca_file)}, or the forge does not send the certificates between.",
                "Put the right authority's certificate there, or have the forge send its whole chain.",
            )
        return problem(
            "tls.unknown-authority",
            f"The certificate of {host} is signed by an authority that is not known here.",
            "Name the authority's certificate with `forge_ca_file`; if it is a public one, have the forge send its whole chain.",
        )
    return problem(
        "tls.fails",
        f"No TLS connection with {host} comes about.",
        "Check that its port speaks TLS 1.2 or newer, and try `openssl s_client -connect` from here.",
    )


def _system_file() -> str:
    return ssl.get_default_verify_paths().cafile or SYSTEM_FILE
