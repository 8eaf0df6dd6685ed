"""Fireworks' batch API: a dataset in, a job whose id the client chooses, a dataset out.

The id makes a repeated create harmless: there is only one job with it.

Source: docs.fireworks.ai (batch inference, datasets), SDK fireworks-ai 1.2.30, 2026-11.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import orjson

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable
from beam_llm.protocols import LineReply, RemoteJob
from beam_llm.providers.control import ControlCalls
from beam_llm.providers.errors import unreadable
from beam_llm.providers.ids import in_path
from beam_llm.providers.job_search import list_page, next_token
from beam_llm.providers.openai.batch_files import DialectBatches, without_model
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.job_objects import FINGERPRINT, reason_of
from beam_llm.providers.result_files import fetch_files
from beam_llm.providers.typed import loads, word
from beam_llm.values import Request

_PAGE = "200"
_ENDED = ("COMPLETED", "FAILED", "EXPIRED", "CANCELLED")


class FireworksBatches(DialectBatches):
    """Remote jobs (a BatchProvider) that can't be cancelled."""

    def _body(self, request: Request, dialect: Dialect) -> bytes:
        """The body without the model, which the job names."""
        return without_model(super()._body(request, dialect), request.model)

    def decode_line(self, line: bytes) -> LineReply:
        """Reads a result line, in which a reply may be without a status around it."""
        found = loads(line)
        response = found.get("response") if isinstance(found, dict) else None
        if isinstance(response, dict) and "choices" in response and "body" not in response:
            found["response"] = {"status_code": 200, "body": response}
            with suppress(TypeError):  # nested too deeply: read as it is
                line = orjson.dumps(found)
        return super().decode_line(line)

    # A job's way

    def stage(self, lines: Path, name: str) -> str:
        """Puts a job's lines into a new dataset; returns its id."""
        dataset = f"beam-llm-{uuid.uuid4().hex}"
        body = orjson.dumps({"datasetId": dataset, "dataset": {"userUploaded": {}}})
        # The id is new and random, so an existing dataset comes from a try whose answer was lost.
        self._control.ensure("POST", self._url("datasets"), 409, data=body, missing=Aborted)

        def once(seconds: float) -> None:
            with open(lines, "rb") as file:
                form = aiohttp.FormData()
                form.add_field(
                    "file", file, filename=f"{name}.jsonl", content_type="application/jsonl"
                )
                url = self._url("datasets", dataset, ":upload")
                self._control.call("POST", url, seconds, data=form)

        self._control.harmless(once, self._bounds.transfer_seconds)
        self._control.wait_until_processed(self._url("datasets", dataset), "state")
        return dataset

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job of that name, or returns the existing one."""
        job_id = job_id_of(name)
        body = {
            "displayName": name,
            "model": self._model,
            "inputDatasetId": f"accounts/{self._options.get('account_id', '')}/datasets/{staged}",
        }
        url = self._url("batchInferenceJobs", query={"batchInferenceJobId": job_id})
        try:
            return self._job(self._control.create(url, orjson.dumps(body), reason_of))
        except CallError as error:
            # A 409 is about the id: an earlier create succeeded, and the job exists.
            if error.status != 409:
                raise
        return self.look(job_id)

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        return self._look_at(self._url("batchInferenceJobs", job_id))

    def _job(self, job: Mapping[str, Any]) -> RemoteJob:
        return super()._job(in_openai_shape(job))

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Streams the files of the output dataset into one, from the addresses that the provider
        names, without the key.
        """
        urls = [pair for dataset in job.result_files for pair in self._files_of(dataset)]
        # The addresses are signed and belong to another host, which must not get the key.
        context = self._context._replace(key_reference=None)
        plain = ControlCalls(context, self._bounds, {})
        try:
            fetch_files(plain, urls, self._bounds.transfer_seconds, path)
        except (Aborted, Rejected) as error:
            if error.status is None:  # larger than its bound
                raise
            refused = error
        else:
            return
        # The key can't be the cause: the address may have expired, and another try gets a new one.
        raise Retryable(Kind.UNAVAILABLE, f"the results' store refuses them: {refused.message}")

    def _files_of(self, dataset: str) -> list[tuple[str, str]]:
        url = self._url("datasets", dataset, ":getDownloadEndpoint")
        found = self._control.harmless(
            lambda seconds: self._control.object(
                "GET", url, seconds, missing=Rejected, id_field=None
            )
        )
        named = found.get("filenameToSignedUrls")
        pairs = sorted(named.items()) if isinstance(named, dict) else []
        if not all(isinstance(address, str) and self._may_read(address) for _, address in pairs):
            raise unreadable("the results' address is not one to read from")
        return pairs

    def _may_read(self, address: str) -> bool:
        """Whether the address uses TLS, or is at the provider's own host."""
        try:
            parts = urlsplit(address)
            has_tls = parts.scheme == "https" and bool(parts.hostname)
        except ValueError:
            return False
        own_address = urlsplit(self._place.base_url)
        return has_tls or (parts.scheme, parts.netloc) == (own_address.scheme, own_address.netloc)

    def cancel(self, job_id: str) -> None:
        """Does nothing: no job can be cancelled."""

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes a job's output dataset, and an input dataset; harmless where they are gone."""
        datasets = job.result_files if job is not None else ()
        for dataset in datasets if staged is None else (*datasets, staged):
            self._control.ensure("DELETE", self._url("datasets", dataset), 404)

    # Lists

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        query = {"pageSize": _PAGE}
        while True:
            page = list_page(self._control, self._url("batchInferenceJobs", query=query))
            yield self._read_jobs(page.get("batchInferenceJobs"))
            # A page may be empty before the end; a list that repeats a page has not ended, either.
            query["pageToken"] = next_token(page, "nextPageToken")
            if not query["pageToken"]:
                return

    # Addresses

    def _url(
        self,
        kind: str,
        name: str | None = None,
        verb: str = "",
        query: Mapping[str, str] | None = None,
    ) -> str:
        # Chats are under /inference/v1; jobs and datasets are beside that path.
        root = self._place.base_url.removesuffix("/inference/v1")
        account = quote(str(self._options.get("account_id", "")), safe="")
        path = f"{root}/v1/accounts/{account}/{kind}"
        path += f"/{in_path(name)}{verb}" if name is not None else ""
        return path + (f"?{urlencode(query)}" if query else "")


def job_id_of(name: str) -> str:
    """The id of the job of that name: up to 63 letters, digits and hyphens, as the provider
    demands.
    """
    return f"beam-llm-{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def in_openai_shape(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job as OpenAI would show it."""
    state = word(job.get("state")).removeprefix("JOB_STATE_")
    progress, status = job.get("jobProgress"), job.get("status")
    counted = progress if isinstance(progress, dict) else {}
    has_failed = state == "FAILED" and isinstance(status, dict) and status.get("message")
    return {
        "id": _last(job.get("name")),
        "status": state,
        "created_at": job.get("createTime"),
        "metadata": {FINGERPRINT: job["displayName"]} if job.get("displayName") else None,
        "input_file_id": _last(job.get("inputDatasetId")),
        "output_file_id": _last(job.get("outputDatasetId")) if state in _ENDED else None,
        "request_counts": {
            "total": counted.get("totalInputRequests"),
            "completed": counted.get("successfullyProcessedRequests"),
            "failed": counted.get("failedRequests"),
        },
        "errors": [status] if has_failed else None,
    }


def _last(resource: Any) -> str | None:
    """The id in a resource's name."""
    return resource.rpartition("/")[2] or None if isinstance(resource, str) else None
