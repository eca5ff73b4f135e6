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
_TRANSIENT_ERRORS = {"RequestTimeout", "RequestTimeoutException"}  # of S3, with status 400
_DENIED_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "RequestExpired",
    "TokenRefreshRequired",
}


_LOGINS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the login of `gcloud auth application-default login` "
    "(in Colab: `google.colab.auth.authenticate_user()`), and the service account of the machine",
    "s3": "AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), AWS_PROFILE, the "
    "login of `aws configure` or `aws sso login`, and the role of the machine",
}


def is_transient(error: Exception) -> bool:
    """Returns True if the same operation may succeed later."""
    code = _status(error)
    if code is not None:
        return code in _TRANSIENT_CODES or _error_code(error) in _TRANSIENT_ERRORS
    if getattr(error, "retryable", False):  # of google.auth
        return True
    return isinstance(error, ConnectionError | TimeoutError) or _is_one_of(error, _TRANSIENT)


def is_denied(error: Exception) -> bool:
    """Returns True if credentials are missing, expired or not sufficient."""
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return True
    if str(error).startswith("Forbidden:"):  # of gcsfs, without a code
        return True
    if _error_code(error) in _DENIED_CODES:
        return True
    return _is_one_of(error, _DENIED) and not is_transient(error)


def denied_message(url: str, scheme: str, error: Exception) -> str:
    """Returns the message about a URL without access: the reason, and where logins are found."""
    hint = f". Credentials are looked for in {_LOGINS[scheme]}" if scheme in _LOGINS else ""
    return f"no access to {url}: {reason(error)}{hint}"


def underlying(error: Exception) -> Exception:
    """Returns the error that led to one of fsspec, which reports any failed HTTP request as a
    missing file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return cause if is_transient(cause) or is_denied(cause) else error
    return error


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
    code = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "code"):  # of aiohttp, gcsfs
        code = getattr(error, name, None) if code is None else code
    return int(code) if isinstance(code, int | str) and str(code).isdigit() else None


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
