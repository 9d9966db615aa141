"""Refusals as the wire knows them: a status, one of the codes of odata.md §6 (X1), a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from skylift.errors import (
    Conflict,
    CopyError,
    NotFound,
    SetupError,
    SkyliftError,
    SourceFailed,
    StateError,
    TargetFailed,
    TimedOut,
    Transient,
)

RETRY_AFTER_S = 5


class ODataError(Exception):
    """`skylift_code` repeats the service's own machine-readable code, where the refusal is one of its."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None, skylift_code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.skylift_code = skylift_code


def bad_request(message: str, code: str = "BadRequest") -> ODataError:
    return ODataError(400, code, message)


def unknown_property(name: str, entity: str) -> ODataError:
    return ODataError(400, "BadRequest_NotFound", f"Could not find a property named '{name}' on type 'Microsoft.NAV.{entity}'.")


def unknown_segment(segment: str) -> ODataError:
    return ODataError(404, "BadRequest_ResourceNotFound", f"Resource not found for the segment '{segment}'.")


def unknown_key(entity: str, key: str) -> ODataError:
    return ODataError(404, "Internal_RecordNotFound", f"There is no {entity} with the key {key}.")


def no_company(name: str = "") -> ODataError:
    return ODataError(404, "Internal_CompanyNotFound", f"The company '{name}' does not exist." if name else
                      "No company can be determined. Name one in the path, as ?company= or in the header Company.")


def not_implemented(message: str) -> ODataError:
    return ODataError(501, "BadRequest_MethodNotImplemented", message)


def not_allowed(method: str, resource: str, allow: tuple[str, ...], edm_type: str = "Entity") -> ODataError:
    return ODataError(405, "BadRequest_MethodNotAllowed", f"'{method}' requests for '{resource}' of EdmType '{edm_type}' are not allowed "
                      "within Microsoft Dynamics NAV OData web services.", {"Allow": ", ".join(allow)})


def of_service(error: SkyliftError) -> ODataError:
    """What the service refused, as the wire says it: business refusals are 400 with sentence and hint (A3)."""
    message = error.message[:1].upper() + error.message[1:].rstrip(".") + "."
    if error.hint:
        first = error.hint[:1] if error.hint.startswith("skylift ") else error.hint[:1].upper()      # a command is spelt as it is typed
        message += f" {first}{error.hint[1:].rstrip('.')}."
    match error:
        case SetupError() | StateError() | CopyError() | SourceFailed() | TargetFailed():
            return ODataError(400, "Application_DialogException", message, skylift_code=error.code)
        case NotFound():
            return ODataError(404, "Internal_RecordNotFound", message, skylift_code=error.code)
        case Conflict(code="SameKey"):
            return ODataError(409, "Internal_EntityWithSameKeyExists", message, skylift_code=error.code)
        case Conflict():
            return ODataError(409, "Request_EntityChanged", "Another user has already changed the record.", skylift_code=error.code)
        case TimedOut():
            return ODataError(408, "Internal_ServerError", message, skylift_code=error.code)
        case Transient():
            return ODataError(503, "Internal_TenantUnavailable", message, {"Retry-After": str(RETRY_AFTER_S)}, error.code)
    return ODataError(500, "Internal_ServerError", "An unexpected error occurred.", skylift_code=error.code)
