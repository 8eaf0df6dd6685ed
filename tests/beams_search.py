"""Beam's own search for Google's credentials, and what else it asks of Google's cloud: 20 s and more
where there is none.
"""

from __future__ import annotations

import pytest


def ask_nothing_of_google(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells Beam that it has looked for credentials, and spares it the bucket's policy."""
    from apache_beam.internal.gcp.auth import _Credentials  # Beam's flag has no public name
    from apache_beam.options.pipeline_options import GoogleCloudOptions as Options

    monkeypatch.setattr(_Credentials, "_credentials_init", True)  # as above
    asks = "_warn_if_soft_delete_policy_enabled"
    monkeypatch.setattr(Options, asks, lambda self, name: None)


def has_searched() -> bool:
    """Whether Beam has looked for credentials in this process, or was told that it had."""
    from apache_beam.internal.gcp.auth import _Credentials  # Beam's flag has no public name

    return bool(_Credentials._credentials_init)  # as above
