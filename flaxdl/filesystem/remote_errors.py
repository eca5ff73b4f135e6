"""Classification of errors that file systems of fsspec raise."""

import http.client

_TRANSIENT_CODES = {408, 409, 429, 500, 502, 503, 504}
# By module and name, so that no client library is imported. Bases of errors count.
_TRANSIENT = {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.exceptions.ResponseStreamingError",
    "botocore.parsers.ResponseParserError",
    "gcsfs.retry.ChecksumError",
    "google.auth.exceptions.TransportError",
    "http.client.HTTPException",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.Timeout",
}
_DENIED = {
    "botocore.exceptions.CredentialRetrievalError",
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.ProfileNotFound",
    "botocore.exceptions.SSOError",
    "botocore.exceptions.TokenRetrievalError",
    "google.auth.exceptions.GoogleAuthError",
}
_DENIED_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "RequestExpired",
    "TokenRefreshRequired",
}


def is_transient(error: Exception) -> bool:
    """Returns True if the same operation may succeed later."""
    code = _status(error)
    if code is not None:
        return code in _TRANSIENT_CODES
    return isinstance(error, ConnectionError | TimeoutError) or _is_one_of(error, _TRANSIENT)


def is_denied(error: Exception) -> bool:
    """Returns True if credentials are missing, expired or not sufficient."""
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return True
    if str(error).startswith("Forbidden:"):  # of gcsfs, without a code
        return True
    if _error_code(error) in _DENIED_CODES:
        return True
    return _is_one_of(error, _DENIED) and not _is_one_of(error, _TRANSIENT)


def is_unsupported(error: Exception) -> bool:
    """Returns True if a server does not implement conditional writes."""
    return _status(error) == http.client.NOT_IMPLEMENTED


def reason(error: Exception) -> str:
    """Returns the message of an error in one line, or what its HTTP status means."""
    text = _response(error).get("Error", {}).get("Message") or str(error)
    if isinstance(error, OSError) and error.strerror and not _response(error):
        text = error.strerror
    text = " ".join(text.split())
    code = _status(error)
    if code is not None and text in ("", f", {code}"):  # the form of gcsfs
        return f"{code} {http.client.responses.get(code, '')}".strip()
    return text or type(error).__name__


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error of botocore, gcsfs or aiohttp."""
    response = _response(error)
    codes = (
        response.get("ResponseMetadata", {}).get("HTTPStatusCode"),
        getattr(error, "code", None),
        getattr(error, "status", None),
    )
    return next((int(text) for text in map(str, codes) if text.isdigit()), None)


def _error_code(error: Exception) -> str | None:
    return _response(error).get("Error", {}).get("Code")


def _response(error: Exception) -> dict:
    """Returns the response of Amazon S3; s3fs raises an OSError from the error that has it."""
    for link in (error, error.__cause__):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _is_one_of(error: Exception, names: set[str]) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in type(error).__mro__)
