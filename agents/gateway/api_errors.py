"""How does the gateway say no? Every refusal is an `ApiError` and has OpenAI's shape on the wire.

`{"error": {"message", "type", "param", "code"}}` with the HTTP status that the `openai` clients
turn into their own exception classes. Never put a token, a path or a stack trace into a message.
"""

from typing import Any

from ...core.errors import MoectlError


class ApiError(MoectlError):
    """A refusal with an HTTP status; `retry_after_s` becomes the Retry-After header."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        """The response body in OpenAI's form."""
        return {
            "error": {
                "message": _printable(self.message),
                "type": _TYPES.get(self.status, "server_error"),
                "param": None if self.param is None else _printable(self.param),
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def _printable(text: str) -> str:
    """What a client sent may hold lone surrogates, which no encoding can carry back."""
    return text.encode("utf-8", "backslashreplace").decode()


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """400: the request itself is wrong; `param` names the field."""
    return ApiError(400, message, code=code, param=param)


def unknown_model(name: str) -> ApiError:
    """404: no such model is declared."""
    message = f"The model {name!r} does not exist or is not served here"
    return ApiError(404, message, code="model_not_found", param="model")


def context_overflow(prompt_tokens: int, wanted_tokens: int, context_tokens: int) -> ApiError:
    """400: prompt and completion together do not fit the model's context."""
    message = (
        f"This model's maximum context length is {context_tokens} tokens, but {prompt_tokens} in "
        f"the prompt and {wanted_tokens} for the completion were asked for: shorten one of them"
    )
    return ApiError(400, message, code="context_length_exceeded", param="messages")


def unauthorized(message: str) -> ApiError:
    """401: no bearer token, or one that is not known."""
    return ApiError(401, message, code="invalid_api_key")


def forbidden(message: str, param: str | None) -> ApiError:
    """403: this token may not do that."""
    return ApiError(403, message, code="insufficient_permissions", param=param)


def too_many(message: str, retry_after_s: int = 1) -> ApiError:
    """429: a limit on requests held at once is reached."""
    error = ApiError(429, message, code="rate_limit_exceeded")
    error.retry_after_s = retry_after_s
    return error


def unavailable(message: str, retry_after_s: int = 5) -> ApiError:
    """503: nothing can serve this now; trying later may work."""
    error = ApiError(503, message, code="service_unavailable")
    error.retry_after_s = retry_after_s
    return error


def failed(message: str) -> ApiError:
    """500: the engine failed while serving this request."""
    return ApiError(500, message, code="engine_error")
