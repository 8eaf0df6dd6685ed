"""A staging store that is a prefix of a container of Azure Blob Storage."""

from __future__ import annotations

import os
from typing import Any

from beam_llm.errors import UsageError
from beam_llm.stores.objects import CLIENT, RETRIES, ObjectStore

_ACCOUNT = "AZURE_STORAGE_ACCOUNT_NAME"
_EMULATOR = "AZURE_STORAGE_USE_EMULATOR"


class AzureStore(ObjectStore):
    """`az://container/path`: creates carry `If-None-Match: *`.

    The account is `AZURE_STORAGE_ACCOUNT_NAME`; credentials as obstore finds them: an account key,
    a SAS token, a client secret, a federated token or the machine's identity, by the variables of
    Azure's own tools. `AZURE_STORAGE_USE_EMULATOR` speaks to Azurite.

    Source: Azure Blob Storage REST reference, "Specifying conditional headers"; obstore 0.12,
    `store.AzureConfig`, both read 2026-11.
    """

    scheme = "az"
    noun = "container"

    def _open(self) -> Any:
        from obstore.store import AzureStore as Container

        emulated = os.environ.get(_EMULATOR, "").lower() in ("1", "true", "yes")
        endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or ""
        if not (emulated or endpoint or os.environ.get(_ACCOUNT)):
            raise UsageError(
                f"staging_location is {self.location!r}: the storage account is not named; "
                f"export {_ACCOUNT}"
            )
        return Container(
            self.bucket,
            prefix=self.prefix or None,
            client_options={**CLIENT, "allow_http": emulated or endpoint.startswith("http://")},
            retry_config=RETRIES,
        )
