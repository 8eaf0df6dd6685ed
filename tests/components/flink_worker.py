"""The program that a Flink TaskManager starts as a Python worker (Beam's PROCESS environment), in
place of Beam's Go `boot`.

It asks the runner for the pipeline's options and becomes an SDK harness. Unlike `boot` it stages no
files: the pipeline's code must be importable. Flags and variables are those of
sdks/python/container/boot.go in Beam.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in (
        "--id",
        "--logging_endpoint",
        "--artifact_endpoint",
        "--provision_endpoint",
        "--control_endpoint",
        "--semi_persist_dir",
    ):
        parser.add_argument(flag, default="")
    flags, _ = parser.parse_known_args()

    with grpc.insecure_channel(flags.provision_endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = service.GetProvisionInfo(
            request, timeout=60, metadata=[("worker_id", flags.id)]
        ).info

    with tempfile.TemporaryDirectory(prefix="beam-llm-worker-") as folder:
        options_file = os.path.join(folder, "options.json")
        with open(options_file, "w") as file:
            file.write(json_format.MessageToJson(info.pipeline_options))
        os.environ |= {
            "WORKER_ID": flags.id,
            "PIPELINE_OPTIONS_FILE": options_file,
            "SEMI_PERSISTENT_DIRECTORY": folder,
            "LOGGING_API_SERVICE_DESCRIPTOR": f'url: "{info.logging_endpoint.url or flags.logging_endpoint}"',
            "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{info.control_endpoint.url or flags.control_endpoint}"',
            "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        }
        sdk_worker_main.main([])


if __name__ == "__main__":
    main()
