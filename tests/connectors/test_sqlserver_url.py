"""SQL Server's connection strings. Judge of the ADO.NET and ODBC spellings: what Microsoft's documentation says of each example."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mssql_python.connection_string_parser import _ConnectionStringParser
from sqlalchemy.engine import make_url

from skylift.connectors import parse_url
from skylift.connectors.sqlserver_url import driver_keywords
from skylift.errors import SetupError

LONG = "Server=tcp:srv.database.windows.net,1433;Initial Catalog=bc;Persist Security Info=False;User ID=me@srv;Password=s3cret;" \
       "MultipleActiveResultSets=False;Encrypt=True;TrustServerCertificate=False;Connection Timeout=30;"


@pytest.mark.parametrize("text, url", [
    (LONG, "mssql://me%40srv:s3cret@srv.database.windows.net:1433/bc?connect_timeout=30&encrypt=yes&trust_server_certificate=no"),
    ("Data Source=srv;Initial Catalog=bc;UID=sa;PWD=x", "mssql://sa:x@srv/bc"),
    ("addr=srv; network address = srv ;database=bc;userid=sa;password=x", "mssql://sa:x@srv/bc"),
    (r"Server=.\SQLEXPRESS;Database=bc;User Id=sa;Password=x", "mssql://sa:x@localhost/bc?instance=SQLEXPRESS"),
    (r"Server=(local);Database=bc;User Id=sa;Password=x", "mssql://sa:x@localhost/bc"),
    (r"Server=srv\MSSQLSERVER,1500;Database=bc;User Id=sa;Password=x", "mssql://sa:x@srv:1500/bc"),
    ("Server=tcp:[fe80::1],1500;Database=bc;User Id=sa;Password=x", "mssql://sa:x@[fe80::1]:1500/bc"),
    ("Server=srv;Database=bc;Integrated Security=SSPI;User ID=ignored", "mssql://srv/bc?integrated_security=yes"),
    ("Server=srv;Database=bc;Trusted_Connection=yes", "mssql://srv/bc?integrated_security=yes"),
    ("Server=srv;Database=bc;Authentication=ActiveDirectoryMsi", "mssql://srv/bc?authentication=ActiveDirectoryMsi"),
    ("Driver={ODBC Driver 18 for SQL Server};Server=srv;Uid=sa;Pwd={a;b}}c'};Database=bc;Encrypt=strict", "mssql://sa:a%3Bb%7Dc%27@srv/bc?encrypt=strict"),
    ("mssql://sa:p%3Bw@srv:1433/bc?Encrypt=Mandatory", "mssql://sa:p%3Bw@srv:1433/bc?encrypt=yes"),
    ("sqlserver://sa:x@srv:1433?database=bc&TrustServerCertificate=true", "mssql://sa:x@srv:1433/bc?trust_server_certificate=yes"),
    ("mssql+pyodbc://sa:x@srv/bc?driver=ODBC+Driver+18+for+SQL+Server", "mssql://sa:x@srv/bc"),
])
def test_each_spelling_becomes_the_same_kind_of_url(text, url):
    assert parse_url(text) == make_url(url)
    assert parse_url(parse_url(text).render_as_string(hide_password=False)) == make_url(url)


@pytest.mark.parametrize("text, password", [
    ('Password="a;b""c\'d"', "a;b\"c'd"),
    ("Password='a;b''c\"d'", "a;b'c\"d"),
    ("Password = plain= with == and \" inside ", 'plain= with == and " inside'),
    ('Password="  blanks  " ', "  blanks  "),
    ("Password={a;b}}c}", "a;b}c"),
    ("Driver=x;Pwd='kept as it is'", "'kept as it is'"),
])
def test_quotes_and_braces_end_where_microsoft_says_they_do(text, password):
    assert parse_url(f"Server=s;{text};Database=d;User ID=u").password == password


@pytest.mark.parametrize("text, message", [
    ("Server=s;Database=d;User ID=u;Password=geheim;Encrpt=yes", "'Encrpt' is no keyword"),
    ("Server=s;Database=d;Colour=geheim;User ID=u", "'Colour' is no keyword"),
    ("Server=s;Database=d;User ID=u;Password=ab;geheim=1", "what follows the password is no keyword"),
    ("Server=s;Database=d;User ID=u;Password=ab;geheim", "the part after 'Password' has no '='"),
    ('Server=s;Database=d;User ID=u;Password="geheim', "the value of Password begins with \" and does not end"),
    ("Server=s;Database=d;User ID=u;Password={geheim}x", "the value of Password begins with {"),
    ("=geheim;Server=s", "without a keyword at the beginning"),
    ("Database=d;User ID=u;Password=geheim", "names no server"),
    ("Server=s;User ID=u;Password=geheim", "names no database"),
    ("Server=s;Database=d;Password=geheim", "names no user"),
    ("Server=s;Data Source=t;Database=d;User ID=u;Password=geheim", "sets server twice"),
    ("Server=s:1433;Database=d;User ID=u;Password=geheim", "colon before the port"),
    ("Server=np:\\\\s\\pipe;Database=d;User ID=u;Password=geheim", "protocol np"),
    ("Server=(localdb)\\v11;Database=d;Integrated Security=true", "LocalDB"),
    ("Server=s,70000;Database=d;User ID=u;Password=geheim", "not of the form host"),
    ("Server=s;Database=d;User ID=u;Password=geheim;Connect Timeout=soon", "Connect Timeout is not a number from 0 to 3600"),
    ("Server=s;Database=d;User ID=u;Password=geheim;Encrypt=maybe", "Encrypt is none of yes, true"),
    ("DSN=mine;Uid=u;Pwd=geheim", "sets DSN"),
    ("Server=s;Database=d;User ID=u;Password=geheim;Column Encryption Setting=Enabled", "Always Encrypted"),
    ("Server=s;Database=d;User ID=u;Password=gehe\0im", "NUL"),
    ("mssql://u:geheim@s/d?colour=red", "'colour' is no keyword"),
    ("mssql://u:geheim@s:99999/d", "port is not a number from 1 to 65535"),
])
def test_a_malformed_string_is_refused_by_what_is_wrong_without_its_password(text, message):
    with pytest.raises(SetupError) as raised:
        parse_url(text)

    assert raised.value.code == "52072" and message in raised.value.message
    assert raised.value.hint and "geheim" not in str(raised.value) and "gehe" not in str(raised.value)


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)
SECRET = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@given(user=NAME, password=SECRET, database=NAME, quote=st.sampled_from("\"'"))
def test_any_password_survives_ado_odbc_and_the_drivers_own_parser(user, password, database, quote):
    def ado(value):
        return quote + value.replace(quote, quote * 2) + quote

    def odbc(value):
        return "{" + value.replace("}", "}}") + "}"

    url = parse_url(f"Server=srv,1500;Database={ado(database)};User ID={ado(user)};Password={ado(password)}")

    assert (url.username, url.password, url.database, url.host, url.port) == (user, password, database, "srv", 1500)
    braced = f"Driver=x;Server=srv,1500;Database={odbc(database)};Uid={odbc(user)};Pwd={odbc(password)}"
    assert parse_url(braced) == url == parse_url(url.render_as_string(hide_password=False))
    understood = _ConnectionStringParser()._parse(";".join(f"{k}={odbc(v)}" for k, v in driver_keywords(url).items()))
    assert understood == {"server": "srv,1500", "database": database, "uid": user, "pwd": password}


PIECES = st.sampled_from(["Server=s", "Database=d", "User ID=u", "Password=", "Pwd=", "=", ";", '"', "'", "{", "}", "tcp:", ",1433",
                          "\\", " ", "Encrypt=", "yes", "Driver=x", "=="])


@given(st.lists(PIECES | st.text(max_size=4), max_size=14).map("".join))
def test_no_text_crashes_the_parser(text):
    try:
        url = parse_url(text)
    except SetupError as error:
        assert error.hint
    else:
        assert url.get_backend_name() != "mssql" or (url.host and url.database)


@given(SECRET.map(lambda s: "q7Zx" + s), st.sampled_from(["{}", '"{}', "'{}", "{{{}", '"{}"x', "{};", "{};y", "{}=;x", "x;{}=y"]),
       st.sampled_from(["Password", "PWD", "Pwd"]))
def test_no_error_repeats_what_stands_behind_password(secret, shape, keyword):
    for rest in ("Colour=1", "Encrypt=perhaps", ""):
        try:
            parse_url(f"Server=s;Database=d;User ID=u;{keyword}={shape.format(secret)};{rest}")
        except SetupError as error:
            assert "q7Zx" not in str(error) and all(piece not in str(error) for piece in secret.split(";") if len(piece) > 5)
