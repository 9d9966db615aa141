"""SQL Server's connection strings in all three spellings, as one URL: `mssql://user:password@host:port/database?encrypt=yes`.

    ADO.NET    Server=tcp:host,1433;Initial Catalog=db;User ID=u;Password="p;w";Encrypt=True
    ODBC       Driver={ODBC Driver 18 for SQL Server};Server=host\\instance;Database=db;Uid=u;Pwd={p;w}
    URL        mssql://u:p%3Bw@host:1433/db?encrypt=strict

Keywords are those of Microsoft's drivers; blanks, underscores and case in them do not count. What an error says never holds a
value that may be part of a password.
Source: https://learn.microsoft.com/sql/connect/ado-net/connection-string-syntax,
https://learn.microsoft.com/dotnet/api/microsoft.data.sqlclient.sqlconnection.connectionstring,
https://learn.microsoft.com/sql/connect/odbc/dsn-connection-string-attribute
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from sqlalchemy.engine import URL

from skylift.errors import SetupError

SCHEMES = ("mssql", "sqlserver")  # of URLs; a driver's name may follow the first, as in mssql+pyodbc://
MALFORMED = "52072"               # behaviour.md §5.7

_YES, _NO = ("yes", "true", "1", "sspi"), ("no", "false", "0")
_FLAG = {**dict.fromkeys(_YES, "yes"), **dict.fromkeys(_NO, "no")}

# What skylift acts upon: name in the URL -> values it may have, and its other spellings.
_SETTINGS: dict[str, tuple[dict[str, str] | range | None, str]] = {
    "server":                   (None, "data_source address addr network_address host"),
    "port":                     (range(1, 65536), ""),
    "instance":                 (None, ""),
    "database":                 (None, "initial_catalog database_name"),
    "user":                     (None, "user_id uid user_name"),
    "password":                 (None, "pwd"),
    "integrated_security":      (_FLAG, "trusted_connection"),
    "authentication":           (None, ""),
    "encrypt":                  ({**_FLAG, "mandatory": "yes", "optional": "no", "strict": "strict"}, ""),
    "trust_server_certificate": (_FLAG, ""),
    "host_name_in_certificate": (None, "hostname_in_certificate"),
    "server_certificate":       (None, ""),
    "server_spn":               (None, ""),
    "application_intent":       ({"readonly": "ReadOnly", "readwrite": "ReadWrite"}, ""),
    "multi_subnet_failover":    (_FLAG, ""),
    "ip_address_preference":    ({"ipv4first": "IPv4First", "ipv6first": "IPv6First", "useplatformdefault": "UsePlatformDefault"}, ""),
    "connect_timeout":          (range(0, 3601), "connection_timeout timeout login_timeout"),
    "connect_retry_count":      (range(0, 256), ""),
    "connect_retry_interval":   (range(1, 61), ""),
    "packet_size":              (range(512, 32768), ""),
    "check_version":            (_FLAG, ""),   # of skylift: no = take another server that speaks TDS at its word
}
# What is understood and makes no difference here: how a client pools, names itself or shapes its results.
_WITHOUT_EFFECT = re.findall(r"\w+", """
 app application_name ansi_npw async asynchronous_processing auto_translate command_timeout current_language description driver
 enclave_attestation_url attestation_protocol enlist failover_partner failover_partner_spn failover_server_spn get_data_extensions
 keep_alive keep_alive_interval language load_balance_timeout connection_lifetime long_as_max mars_connection max_pool_size
 min_pool_size multiple_active_result_sets net network network_library persist_security_info pool_blocking_period pooling
 quoted_id regional replication retry_exec transaction_binding transparent_network_ip_resolution type_system_version use_fmt_only
 workstation_id wsid stats_log_on stats_log_file query_log_on query_log_file query_log_time""")
_REFUSED = {
    "dsn": "a data source name is not looked up: write Server=..;Database=..",
    "file_dsn": "a data source file is not read: write Server=..;Database=..",
    "attach_db_filename": "database files are not attached: attach it yourself and name it with Database=..",
    "context_connection": "there is no context connection outside of the server",
    "user_instance": "user instances are not supported: name the instance with Server=host\\instance",
}
# Always Encrypted would hand out ciphertext, or need keys that skylift does not have.
_ENCRYPTED_COLUMNS = ("column_encryption", "column_encryption_setting")


def _squeezed(keyword: str) -> str:
    return re.sub(r"[\s_]", "", keyword).lower()


_NAMES = {_squeezed(spelling): name for name, (_, others) in _SETTINGS.items() for spelling in (name, *others.split())}
_IGNORED = {_squeezed(keyword) for keyword in _WITHOUT_EFFECT}
_REFUSALS = {_squeezed(keyword): why for keyword, why in _REFUSED.items()}
_ENCRYPTION = {_squeezed(keyword) for keyword in _ENCRYPTED_COLUMNS}
_KNOWN = {**{_squeezed(keyword): keyword for keyword in _WITHOUT_EFFECT}, **_NAMES}


def has_keywords(text: str) -> bool:
    """Is this no URL but a string of keywords and values?"""
    return "=" in text and not re.match(r"\s*[A-Za-z][\w+.-]*://", text)


def from_keywords(text: str) -> URL:
    """The URL that an ADO.NET or ODBC connection string stands for. Raises SetupError 52072 saying what is wrong with it."""
    values: dict[str, str] = {}
    previous = ""
    for keyword, value in _pairs(text):
        name = _NAMES.get(_squeezed(keyword), _squeezed(keyword))
        _accept(values, name, keyword, value, hidden=previous == "password")
        previous = name
    return _url(values)


def from_url(url: URL) -> URL:
    """The same for a URL, whose query may spell the settings as connection strings do."""
    values: dict[str, str] = {}
    parts = {"server": url.host, "port": url.port, "user": url.username, "password": url.password, "database": url.database}
    for keyword, value in [*((name, str(part)) for name, part in parts.items() if part is not None), *url.normalized_query.items()]:
        name = _NAMES.get(_squeezed(keyword), _squeezed(keyword))
        _accept(values, name, keyword, value if isinstance(value, str) else value[-1], hidden=False)
    return _url(values)


def driver_keywords(url: URL) -> dict[str, str]:
    """The settings of a URL made here, in the spelling of ODBC Driver 18; each value as it is, to be quoted by who joins them."""
    query = {name: str(value) for name, value in url.query.items()}
    instance = query.get("instance")
    given = {
        "Server": f"{url.host}{chr(92) + instance if instance else ''}{f',{url.port}' if url.port else ''}", "Database": url.database,
        "UID": url.username, "PWD": url.password, "Trusted_Connection": query.get("integrated_security"),
        "Authentication": query.get("authentication"), "Encrypt": query.get("encrypt"),
        "TrustServerCertificate": query.get("trust_server_certificate"), "HostnameInCertificate": query.get("host_name_in_certificate"),
        "ServerCertificate": query.get("server_certificate"), "ServerSPN": query.get("server_spn"),
        "ApplicationIntent": query.get("application_intent"), "MultiSubnetFailover": query.get("multi_subnet_failover"),
        "IpAddressPreference": query.get("ip_address_preference"), "ConnectRetryCount": query.get("connect_retry_count"),
        "ConnectRetryInterval": query.get("connect_retry_interval"), "PacketSize": query.get("packet_size"),
    }
    return {keyword: value for keyword, value in given.items() if value}


# ------------------------------------------------------------------ text


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Keyword and value of each part, quotes and braces taken off.

    `==` in a keyword is one `=`. A value in quotes ends at the quote that stands alone; so does one in braces, which is ODBC's
    way. Where the string names a Driver or a DSN it is ODBC's, and there quotes are plain characters.
    """
    if "\0" in text:
        raise _malformed("it holds a NUL character")
    odbc = re.search(r"(?i)(^|;)\s*(driver|dsn)\s*=", text) is not None
    at, last = 0, ""
    keyword_and_equals = re.compile(r"[\s;]*([^=;]*)(=?)" if odbc else r"[\s;]*((?:[^=;]|==)*)(=?)")
    while match := keyword_and_equals.match(text, at):
        keyword, equals = match[1].strip().replace("==", "="), match[2]
        if not equals:
            if keyword:                            # not repeated: it may be the rest of a password with a ; in it
                raise _malformed(f"the part {f'after {last!r}' if last else 'at the beginning'} has no '='")
            return
        if not keyword:
            raise _malformed(f"there is a '=' without a keyword {f'after {last!r}' if last else 'at the beginning'}")
        value, at = _value(text, match.end(), keyword if _squeezed(keyword) in _KNOWN else "a keyword", odbc)
        yield keyword, value
        last = keyword if _squeezed(keyword) in _KNOWN else "an unknown keyword"


def _value(text: str, start: int, keyword: str, odbc: bool) -> tuple[str, int]:
    """The value that begins at `start`, and where the next part begins."""
    start += len(text[start:]) - len(text[start:].lstrip())
    closing = {"{": "}", **({} if odbc else {'"': '"', "'": "'"})}.get(text[start:start + 1])
    if not closing:
        end = text.find(";", start)
        end = len(text) if end < 0 else end
        return text[start:end].strip(), end + 1
    quoted = re.compile(rf"((?:[^{re.escape(closing)}]|{re.escape(closing) * 2})*){re.escape(closing)}\s*(;|$)").match(text, start + 1)
    if not quoted:
        raise _malformed(f"the value of {keyword} begins with {text[start]} and does not end with {closing} before a ; or the end")
    return quoted[1].replace(closing * 2, closing), quoted.end()


# ------------------------------------------------------------------ meaning


def _accept(values: dict[str, str], name: str, keyword: str, value: str, hidden: bool) -> None:
    """Take one setting into `values`; `hidden`: the keyword may itself be a piece of a password."""
    if name in _REFUSALS:
        raise SetupError(f"the connection string sets {keyword}", hint=_REFUSALS[name], code=MALFORMED)
    if name in _ENCRYPTION and value.lower() not in ("", "disabled"):
        raise SetupError("the connection string asks for Always Encrypted columns, whose keys skylift does not have",
                         hint=f"leave out {keyword}; encrypted columns are refused by name", code=MALFORMED)
    if name in _IGNORED or name in _ENCRYPTION:
        return
    if name not in _SETTINGS:
        close = get_close_matches(name, _KNOWN, n=1, cutoff=0.75)
        if hidden and not close:
            raise _malformed("what follows the password is no keyword", hint="put a password that holds a ; into double quotes or braces")
        raise _malformed(f"'{keyword}' is no keyword of a SQL Server connection string",
                         hint=f"did you mean {_KNOWN[close[0]].replace('_', ' ')}?" if close else "")
    if not value:
        return
    allowed = _SETTINGS[name][0]
    if isinstance(allowed, range):
        if not re.fullmatch(r"[0-9]{1,6}", value) or int(value) not in allowed:
            raise _malformed(f"{keyword} is not a number from {allowed[0]} to {allowed[-1]}")
        value = str(int(value))
    elif isinstance(allowed, dict):
        if value.lower() not in allowed:
            raise _malformed(f"{keyword} is none of {', '.join(allowed)}")
        value = allowed[value.lower()]
    if values.setdefault(name, value) != value:
        raise _malformed(f"it sets {name.replace('_', ' ')} twice, to different values")


def _url(values: dict[str, str]) -> URL:
    if "server" not in values:
        raise _malformed("it names no server")
    host, instance, port = _server(values.pop("server"))
    if instance and values.setdefault("instance", instance) != instance:
        raise _malformed("it names two instances")
    if port and values.setdefault("port", port) != port:
        raise _malformed("it names two ports")
    if "database" not in values:
        raise _malformed("it names no database", hint="add Database=..")
    if values.get("integrated_security") == "no":
        del values["integrated_security"]
    if "integrated_security" in values:            # the drivers ignore user and password beside it
        values.pop("user", None)
        values.pop("password", None)
    elif "user" not in values and "authentication" not in values:
        raise _malformed("it names no user", hint="add User ID=..;Password=.., or Integrated Security=true where Kerberos is set up")
    port = values.pop("port", "")
    return URL.create("mssql", values.pop("user", None), values.pop("password", None), host, int(port) if port else None,
                      values.pop("database"), dict(sorted(values.items())))


def _server(text: str) -> tuple[str, str, str]:
    """Host, instance and port of `tcp:host\\instance,port`. Source: https://learn.microsoft.com/sql/connect/odbc/connection-string-keywords"""
    protocol, rest = text.split(":", 1) if re.match(r"(?i)(tcp|np|lpc|via|admin):", text) else ("tcp", text)
    if protocol.lower() != "tcp":
        raise _malformed(f"its server asks for the protocol {protocol}", hint="only TCP/IP reaches a server from here: tcp:host,port")
    if rest.lower().startswith("(localdb)"):
        raise _malformed("LocalDB cannot be reached over the network", hint="move the database to an instance that listens on TCP/IP")
    match = re.fullmatch(r"\s*(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s\\,;\[\]{}()/@?#]+|\(local\))\s*(\\\s*(?P<instance>[^\s\\,;/]+)\s*)?"
                         r"(,\s*(?P<port>[0-9]{1,5})\s*)?", rest)
    if not match or not 0 < int(match["port"] or 1) < 65536:
        raise _malformed("its server is not of the form host, host,port or host\\instance")
    host = match["host"].strip("[]")
    if host in (".", "(local)"):
        host = "localhost"
    if re.fullmatch(r"[^:]+:[0-9]+", host):
        raise _malformed("its server has a colon before the port", hint="SQL Server's connection strings write host,port")
    instance = "" if (match["instance"] or "").upper() == "MSSQLSERVER" else match["instance"] or ""    # the default instance's name
    return host, instance, match["port"] or ""


def _malformed(what: str, hint: str = "") -> SetupError:
    return SetupError(f"the SQL Server connection string is malformed: {what}", code=MALFORMED,
                      hint=hint or "write Server=host,1433;Database=name;User ID=name;Password=\"..\";Encrypt=yes")
