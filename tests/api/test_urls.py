import pytest

from skylift.api.errors import ODataError
from skylift.api.urls import MAX_QUERY, parse_url

API = "api/microsoft/cloudMigration/v1.0"


def parse(path, query=""):
    return parse_url("http://host", path.encode("latin-1"), query.encode("latin-1"))


@pytest.mark.rule("U1", "U2", "U3", "U4", "U7")
@pytest.mark.parametrize("root", [
    f"/v2.0/11111111-2222-3333-4444-555555555555/prod/{API}", f"/v2.0/example.com/prod/{API}", f"/v2.0/prod/{API}", f"/BC/{API}", f"/{API}",
    "/BC/api/v1.0", "/v2.0/example.com/prod/api/v1.0", "/v2.0/prod/api/v1.0", "/api/v1.0", "/v2.0/api/api/v1.0",
    "/V2.0/prod/API/Microsoft/CLOUDMIGRATION/V1.0"])
def test_every_root_serves_the_same(root):
    url = parse(f"{root}/companies")
    assert url.root == f"http://host{root}" and [s.name for s in url.segments] == ["companies"]
    assert parse(root).segments == parse(f"{root}/").segments == ()


@pytest.mark.rule("U1", "U4")
@pytest.mark.parametrize("path", ["/", "/api", "/api/v2.0/x", "/api/microsoft/v1.0", "/a/b/api/v1.0/x", "/v1.0/a/api/v1.0",
                                  "/v2.0/a/b/c/api/v1.0", "/api/other/cloudMigration/v1.0"])
def test_other_paths_are_not_the_apis(path):
    assert parse(path) is None


@pytest.mark.rule("U7")
def test_repeated_slashes_are_one_and_escapes_are_decoded_once():
    url = parse("//BC//api/v1.0//companies(name='a%2Fb%2520c')//x/")
    assert [(s.name, s.key) for s in url.segments] == [("companies", "name='a/b%20c'"), ("x", None)]
    assert url.root == "http://host/BC/api/v1.0"


@pytest.mark.rule("Q3")
def test_a_plus_in_the_query_is_a_space():
    url = parse("/api/v1.0/x", "$filter=a+eq+'%2B'&company=C+D&Tenant=t&&novalue")
    assert url.options == {"$filter": "a eq '+'"} and url.others == {"company": "C D", "tenant": "t", "": "", "novalue": ""}


@pytest.mark.rule("Q3")
def test_a_query_has_at_most_8099_characters():
    assert MAX_QUERY == 8099 and parse("/api/v1.0/x", "a" * MAX_QUERY).options == {}


@pytest.mark.rule("Q3", "U8")
@pytest.mark.parametrize(("path", "query", "status"), [
    ("/api/v1.0/x(1", "", 400), ("/api/v1.0/x)", "", 400), ("/api/v1.0/(1)", "", 400), ("/api/v1.0/x(1)y", "", 400),
    ("/api/v1.0/%ff", "", 400), ("/api/v1.0/a%00", "", 400), ("/api/v1.0/x", "$a=1", 400), ("/api/v1.0/x", "$top=1&%24top=2", 400),
    ("/api/v1.0/x", "a=%ff", 400), ("/api/v1.0/x", "a" * (MAX_QUERY + 1), 414)])
def test_malformed_urls_are_refused(path, query, status):
    with pytest.raises(ODataError) as caught:
        parse(path, query)
    assert caught.value.status == status
