"""An S3 server of this process, for tests of what a study does on an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import boto3
import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def object_store() -> Iterator[Any]:
    """Serve an empty bucket `s3://bucket` that every S3 client of this process finds by itself; yield a boto3 client."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem.clear_instance_cache()  # file systems are kept by their arguments, and the address is none
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        # fsspec keeps one client for all of a process, which would go on asking an earlier test's server.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield client
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()
