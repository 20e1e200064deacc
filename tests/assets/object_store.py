"""An S3 server of this process, for tests of what a study does on an object store."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer


class ObjectStore:
    """A server that can go away and come back with everything in it."""

    def __init__(self) -> None:
        self._port = 0
        self.up()

    def up(self) -> None:
        """Serve, at the same address as before."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self.host, self._port = self._server.get_host_and_port()

    def down(self) -> None:
        """Answer nobody."""
        self._server.stop()

    def empty(self) -> None:
        """Forget everything: the servers of a process share what they hold."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/moto-api/reset", method="POST"))

    @property
    def endpoint(self) -> str:
        """Address of the server."""
        return f"http://{self.host}:{self._port}"


@contextlib.contextmanager
def object_store() -> Iterator[Any]:
    """Serve an empty bucket `s3://bucket` that every S3 client of this process finds by itself; yield a boto3 client."""
    with failing_store():
        yield boto3.client("s3")


@contextlib.contextmanager
def failing_store() -> Iterator[ObjectStore]:
    """Serve an empty bucket `s3://bucket` as `object_store` does; yield the server, to take it down."""
    store = ObjectStore()
    store.empty()
    settings = {
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3fs.S3FileSystem.clear_instance_cache()  # file systems are kept by their arguments, and the address is none
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        # fsspec keeps one client for all of a process, which would go on asking an earlier test's server.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield store
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    store.down()
