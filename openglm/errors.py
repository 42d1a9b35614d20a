"""The exception tree. Every mistake a user can make raises one of these; an `AssertionError` is a bug of ours.

    OpenGLMError
    ├── ConfigError          a configuration value or config.json is wrong (names the field)
    ├── CheckpointError      files of a checkpoint are missing, damaged or do not fit (lists every mismatch)
    ├── DataError            a training or evaluation input is wrong (names the file and line)
    ├── RequestError         a request is wrong: the client's mistake (names the parameter)
    │   ├── TemplateError    a conversation cannot be rendered
    │   └── ContextLengthError   prompt (plus requested output) does not fit the context
    ├── QueueFullError       too many requests wait; retry later
    └── EngineError          the engine failed: our mistake, never the client's
        └── EngineDeadError  the engine process ended; a supervisor may be restarting it

A message says what was wrong, where, and what to do. It never repeats the client's input at length.
"""


class OpenGLMError(Exception):
    """Base of every error that openglm raises on purpose."""


class ConfigError(OpenGLMError):
    """A configuration value is missing, of the wrong type, or contradicts another."""


class CheckpointError(OpenGLMError):
    """A checkpoint cannot be used; the message lists every mismatch that was found."""


class DataError(OpenGLMError):
    """Training or evaluation data is malformed."""


class RequestError(OpenGLMError):
    """The request is wrong. `param` names the offending field in the request's own spelling, where there is one."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class TemplateError(RequestError):
    """A conversation cannot be rendered to a prompt."""


class ContextLengthError(RequestError):
    """The prompt, or prompt plus requested output, does not fit the model's context."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class QueueFullError(OpenGLMError):
    """The waiting queue is full. `retry_after_s` estimates when it is worth trying again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(OpenGLMError):
    """The engine failed while it worked on a request; the client did nothing wrong."""


class EngineDeadError(EngineError):
    """The engine process ended or hangs; running requests end with this."""
