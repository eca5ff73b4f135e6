"""File systems of fsspec, set up without cached listings and with one attempt per request."""

import logging
from functools import cache
from typing import Any

from flaxdl.errors import UserError

CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 60  # seconds between two chunks
_EXTRA = "run `pip install 'flaxdl[remote]'`"


def file_system(scheme: str, url: str) -> Any:
    """Returns the fsspec file system of a URL scheme (`gs`, `s3`, `file`, ...).

    Raises:
        UserError: if the scheme is unknown, or a package that it needs is missing.
    """
    try:
        import fsspec

        if scheme == "gs":
            return _google()
        if scheme == "s3":
            return _amazon()
        system = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        needed = _EXTRA if scheme in ("gs", "s3") else f"{_EXTRA}; {error}"
        raise UserError(f"{url} needs packages that are not installed: {needed}") from None
    except ValueError:
        raise UserError(
            f"{url} has an unknown scheme: {scheme}. Supported are gs:// (Google Cloud Storage), "
            "s3:// (Amazon S3), file:// and others that fsspec supports"
        ) from None
    options = {"auto_mkdir": True} if scheme == "file" else {}
    return system(**options, use_listings_cache=False, skip_instance_cache=True)


def _google() -> Any:
    import aiohttp
    from gcsfs.core import GCSFileSystem

    def once(method: Any) -> Any:
        return getattr(method, "__wrapped__", method)

    class OneAttempt(GCSFileSystem):
        # gcsfs retries each of these six times, one within the other.
        _request = once(GCSFileSystem._request)
        _get_file_request = once(GCSFileSystem._get_file_request)
        _get_file_concurrent = once(GCSFileSystem._get_file_concurrent)

    for name in ("gcsfs", "google.auth"):  # they log errors that are raised, with tracebacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return OneAttempt(
        requests_timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT
        ),
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _amazon() -> Any:
    from aiobotocore.session import AioSession
    from s3fs import S3FileSystem

    session = AioSession()  # a new one, which sees a new login
    session.register_component("data_loader", _descriptions_of_services())
    files = S3FileSystem(
        session=session,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": READ_TIMEOUT,
            "retries": {"total_max_attempts": 1},
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    files.retries = 1
    return files


@cache
def _descriptions_of_services() -> Any:
    """Returns what loads and caches JSON files of botocore, which takes 0.2 seconds a session."""
    from botocore.loaders import create_loader

    return create_loader()
