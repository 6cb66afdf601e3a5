"""Every error a user can cause, each with one sentence that says what to do."""


class IceCacheError(Exception):
    """Base of all errors raised by icecache-local."""


class ConfigError(IceCacheError, ValueError):
    """A setting contradicts another or is out of range."""


class UnsupportedModelError(IceCacheError, ValueError):
    """The model file is readable, but its cache cannot be driven exactly."""


class ModelFileError(IceCacheError, ValueError):
    """The model file is missing, damaged or not a GGUF file."""


class HostMemoryError(IceCacheError, MemoryError):
    """The host tier does not fit in the memory of this machine."""


class DeviceError(IceCacheError, RuntimeError):
    """A GPU has failed or has no memory left; the host tier is as it was."""


class ContextFullError(IceCacheError, ValueError):
    """The tokens do not fit in `n_ctx`."""


class EmptyPromptError(IceCacheError, ValueError):
    """There is nothing to continue."""


class BuildMismatchError(IceCacheError, ImportError):
    """The native shim was built against another llama.cpp than the one installed."""


class TaskError(IceCacheError, ValueError):
    """A task, its file or its length cannot be evaluated as asked."""


class ResultsError(IceCacheError, ValueError):
    """A folder of results was made with other settings, or is damaged."""


class MissingExtraError(IceCacheError, ImportError):
    """A library of an optional extra is not installed."""


class SessionError(IceCacheError, ValueError):
    """A session cannot be used as asked."""


class SessionDamagedError(SessionError):
    """A file of a session is missing or does not hold what was written."""


class SessionMismatchError(SessionError):
    """The session belongs to another model, or to other settings."""


class SessionLockedError(SessionError):
    """Another process works on the session."""


class DiskTierError(IceCacheError, OSError):
    """Pages could not be written to the disk or read back; the sequence is forgotten."""


class SessionWriteError(IceCacheError, OSError):
    """The disk took no more; the session is the one saved before."""
