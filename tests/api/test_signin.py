"""Signing in: tokens of an issuer that is a process of its own, Basic, and what each role may do on every route."""

import base64
import json
import logging
import time
from datetime import UTC, datetime, timedelta

import pytest

from skylift.api.apis import APIS
from skylift.api.errors import ODataError
from skylift.api.remembered import AGE_S
from skylift.api.resolve import read_rows
from skylift.api.routes import serve
from skylift.api.urls import parse_url
from skylift.errors import SetupError
from skylift.migration.issuer import Issuer as Verifier
from skylift.model import Caller, Event
from skylift.query import Query
from skylift.settings import Settings
from tests.api.conftest import Client, furnish, number, open_client
from tests.api.issuer import DISCOVERY, KEYS, Issuer, Key, sign_with_secret

RUNS = "cloudMigrationStatus"
AUDIENCE, TENANT, PERSON = "https://api.example.com", "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
KEYS_S = 0.5


@pytest.fixture(scope="module")
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def key(issuer):
    return Key("first")


@pytest.fixture
def settings(issuer, key):
    issuer.put(DISCOVERY, {"issuer": issuer.url, "jwks_uri": issuer.base + KEYS})
    issuer.publish(key)
    return {"jwt_issuer": issuer.url, "jwt_audience": f"api://other {AUDIENCE}", "jwt_tenant": TENANT, "jwt_keys_s": KEYS_S}


@pytest.fixture
def service(tmp_path, settings):
    client = open_client(tmp_path, **settings)
    yield client
    client.http.service.store.close()


@pytest.fixture
def claims(issuer):
    now = int(time.time())
    return {"iss": issuer.url, "aud": AUDIENCE, "tid": TENANT, "oid": PERSON, "sub": "abc", "iat": now, "nbf": now, "exp": now + 600,
            "preferred_username": "ann@example.com", "roles": ["Automation.ReadWrite.All"]}


def status(service, token, method="GET", path=RUNS, **more):
    return Client(service.http, token, service.root).ask(method, path, **more).status_code


# ------------------------------------------------------------------ tokens of an issuer


@pytest.mark.rule("N1", "N4")
@pytest.mark.parametrize(("granted", "reads", "writes", "sets_up"), [
    ({"roles": ["Automation.ReadWrite.All"]},                       200, 400, 400),
    ({"roles": ["X", "API.ReadWrite.All"], "scp": "user"},          200, 400, 400),
    ({"roles": None, "scp": "openid Financials.ReadWrite.All"},     200, 400, 403),
    ({"roles": None, "scope": "API.Read.All"},                      200, 403, 403),
    ({"roles": [], "scp": "openid profile"},                        403, 403, 403),
    ({"roles": {"Automation.ReadWrite.All": 1}, "scp": 7},          403, 403, 403),
    ({"roles": None},                                               403, 403, 403),
])
def test_roles_and_scopes_of_the_issuer_are_skylifts_roles(service, key, claims, granted, reads, writes, sets_up):
    token = key.sign({name: value for name, value in (claims | granted).items() if value is not None})

    assert status(service, token) == reads
    assert status(service, token, "POST", "tableMappings", body={}) == writes
    assert status(service, token, "POST", "setupCloudMigration", body={}) == sets_up


@pytest.mark.rule("N1")
@pytest.mark.parametrize("algorithm", ["PS256", "ES256", "EdDSA"])
def test_every_asymmetric_kind_of_key_will_do(service, issuer, claims, algorithm):
    other = Key("other", algorithm)
    issuer.publish(other)

    assert status(service, other.sign(claims)) == 200


@pytest.mark.rule("N1")
def test_a_key_without_alg_as_entra_publishes_them_will_do(service, issuer, key, claims):
    issuer.publish(key.jwk(alg=None))

    assert status(service, key.sign(claims)) == 200


def test_a_caller_of_the_issuer_is_named_in_the_event_log(service, key, claims):
    made = Client(service.http, key.sign(claims), service.root).ask("POST", "setupCloudMigration", {"productId": "Custom"})

    assert made.status_code == 201
    assert "ann@example.com" in {event.actor for event in service.http.service.select(Event, Query())}


@pytest.mark.rule("N1")
@pytest.mark.parametrize("change", [
    {"exp": -61}, {"nbf": 90}, {"iat": 90}, {"exp": None}, {"exp": "soon"}, {"aud": "https://api.example.com/"}, {"aud": None}, {"aud": []},
    {"iss": "https://evil.example"}, {"iss": None}, {"tid": PERSON}, {"tid": None},
], ids=str)
def test_a_token_of_another_time_place_or_tenant_is_nobody(service, key, claims, change):
    now = int(time.time())
    changed = claims | {name: now + value if isinstance(value, int) else value for name, value in change.items()}

    assert status(service, key.sign({name: value for name, value in changed.items() if value is not None})) == 401


@pytest.mark.rule("N1")
def test_the_clocks_may_differ_a_little(service, key, claims):
    now = int(time.time())

    assert status(service, key.sign(claims | {"exp": now - 30})) == 200
    assert status(service, key.sign(claims | {"nbf": now + 30, "iat": now + 30})) == 200


def _forgeries(key, claims):
    """Tokens that only look as if the issuer had made them."""
    good = key.sign(claims)
    head, body, signature = good.split(".")
    stranger = Key(key.kid)
    unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": key.kid}).encode()).rstrip(b"=").decode()
    return {
        "none": f"{unsigned}.{body}.",
        "none with signature": f"{unsigned}.{body}.{signature}",
        "hmac with the public key": sign_with_secret(key.pem(), claims, key.kid),
        "hmac with the modulus": sign_with_secret(key.jwk()["n"].encode(), claims, key.kid),
        "hmac with a published secret": sign_with_secret(b"0" * 32, claims, "secret"),
        "another's signature": stranger.sign(claims),
        "another's key in the header": stranger.sign(claims, jwk=stranger.jwk()),
        "other claims": f"{head}.{stranger.sign(claims | {'oid': TENANT}).split('.')[1]}.{signature}",
        "no signature": f"{head}.{body}.",
        "no kid": key.sign(claims, kid=None),
        "unknown kid": key.sign(claims, kid="unknown"),
        "kid no text": key.sign(claims, kid=["first"]),
        "key for encryption": key.sign(claims, kid="encryption"),
        "another algorithm than the key's": key.sign(claims, alg="RS512"),
        "critical extension": key.sign(claims, crit=["x"], x=1),
        "no json": "e30.e30.e30",
        "dots": "..",
        "array": f"{base64.urlsafe_b64encode(b'[]').decode()}.{body}.{signature}",
    }


@pytest.mark.rule("N1")
@pytest.mark.parametrize("name", list(_forgeries(Key("x"), {})))
def test_a_forged_token_is_nobody(service, issuer, key, claims, name):
    secret = {"kty": "oct", "kid": "secret", "k": base64.urlsafe_b64encode(b"0" * 32).rstrip(b"=").decode(), "alg": "HS256", "use": "sig"}
    issuer.publish(key, secret, key.jwk(kid="encryption", use="enc"), {"kty": "RSA", "kid": "broken"}, {"kid": "no kind"})
    assert status(service, key.sign(claims)) == 200

    assert status(service, _forgeries(key, claims)[name]) == 401


def test_why_a_token_does_not_count_is_logged_without_it(service, key, claims, caplog):
    token = key.sign(claims | {"aud": "x"})
    with caplog.at_level(logging.DEBUG):
        status(service, token)

    assert "InvalidAudienceError" in caplog.text and token.rpartition(".")[2] not in caplog.text


@pytest.mark.rule("N1")
def test_a_new_key_of_the_issuer_counts_at_once_and_one_it_has_dropped_no_longer(service, issuer, key, claims):
    new = Key("second")
    assert (status(service, key.sign(claims)), status(service, new.sign(claims))) == (200, 401)
    issuer.publish(key, new)
    time.sleep(KEYS_S / 10)
    assert (status(service, key.sign(claims)), status(service, new.sign(claims))) == (200, 200)
    issuer.publish(new)
    time.sleep(max(KEYS_S, AGE_S))                         # an answer that is given again is a second late at most
    assert (status(service, key.sign(claims)), status(service, new.sign(claims))) == (401, 200)


def test_made_up_keys_do_not_become_requests_to_the_issuer(tmp_path, issuer, key, claims, settings):
    service = open_client(tmp_path, **(settings | {"jwt_keys_s": 300}))
    assert status(service, key.sign(claims)) == 200
    before = issuer.asked()

    assert {status(service, key.sign(claims, kid=f"made up {n}")) for n in range(20)} == {401}

    assert issuer.asked() == before
    assert status(service, key.sign(claims)) == 200


@pytest.mark.parametrize("broken", ["no discovery", "another's discovery", "no keys", "keys that are none", "no json"])
def test_without_the_issuers_keys_a_caller_is_told_to_come_back_and_is_served_when_they_are_there(service, issuer, key, claims, broken):
    path, document, code = {
        "no discovery": (DISCOVERY, {}, 500), "another's discovery": (DISCOVERY, {"issuer": "https://evil.example"}, 200),
        "no keys": (KEYS, {}, 503), "keys that are none": (KEYS, {"keys": []}, 200), "no json": (KEYS, [], 200)}[broken]
    issuer.put(path, document, code)
    answer = Client(service.http, key.sign(claims), service.root).get(RUNS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "Internal_TenantUnavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert service.get(RUNS).status_code == 200                   # skylift's own tokens do not need the issuer

    issuer.put(DISCOVERY, {"issuer": issuer.url, "jwks_uri": issuer.base + KEYS})
    issuer.publish(key)
    time.sleep(KEYS_S / 10)
    assert status(service, key.sign(claims)) == 200


def test_keys_once_fetched_last_while_the_issuer_is_away_but_not_for_ever(issuer, key, claims, settings):
    now = 1000.0
    verifier = Verifier(Settings(**settings), lambda: now)
    assert verifier.caller(key.sign(claims)).name == "ann@example.com"
    issuer.put(DISCOVERY, {}, 503)
    now += 23 * 3600
    assert verifier.caller(key.sign(claims)) is not None
    now += 2 * 3600
    with pytest.raises(Exception, match="the issuer of tokens does not answer"):
        verifier.caller(key.sign(claims))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"jwt_issuer": "http://login.example.com"}, "a URL with https is needed"),
    ({"jwt_issuer": "https://login.example.com"}, "jwt_issuer needs jwt_audience too"),
    ({"tls_cert": "x.pem"}, "tls_cert and tls_key are needed both"),
    ({"trusted_proxies": "10.0.0.0/8 proxy"}, "trusted_proxies: 'proxy' does not appear to be an IPv4 or IPv6 network"),
])
def test_settings_that_would_open_a_door_are_refused(wrong, message):
    with pytest.raises(SetupError, match=message):
        Settings(**wrong)


# ------------------------------------------------------------------ Basic


@pytest.mark.rule("N2", "N3")
@pytest.mark.parametrize(("basic_auth", "root", "taken"), [
    ("on-premises", "/BC/api/v1.0", True),
    ("on-premises", "/BC/api/microsoft/cloudMigration/v1.0", True),
    ("on-premises", "/v2.0/prod/api/microsoft/cloudMigration/v1.0", False),
    ("on-premises", "/v2.0/example.com/prod/api/v1.0", False),
    ("off", "/BC/api/v1.0", False),
    ("everywhere", "/V2.0/prod/api/microsoft/cloudMigration/v1.0", True),
])
def test_an_access_key_signs_in_with_basic_where_that_is_on(tmp_path, basic_auth, root, taken):
    client = open_client(tmp_path, basic_auth=basic_auth)
    key = client.http.service.create_token("ANN", "reader", access_key=True)
    credentials = base64.b64encode(f"ANN:{key}".encode()).decode()
    assert len(key) == 44

    answer = client.http.get(f"{root}/companies", headers={"Authorization": f"basic {credentials}"})

    assert answer.status_code == (200 if taken else 401)
    refused = client.http.get(f"{root}/companies")
    assert refused.headers["www-authenticate"] == 'Bearer realm="skylift"' + (', Basic realm="skylift"' if taken else "")


@pytest.mark.rule("N2")
def test_basic_needs_the_name_and_the_key_and_obeys_revocation(client):
    service = client.http.service
    key = service.create_token("ANN", "reader", datetime.now(UTC) + timedelta(days=1), access_key=True)
    service.create_token("BEN", "reader")

    def ask(text):
        credentials = text if isinstance(text, bytes) else base64.b64encode(text.encode())
        return client.http.get("/BC/api/v1.0/companies", headers={"Authorization": b"Basic " + credentials}).status_code

    for wrong in (f"BEN:{key}", f":{key}", key, f"ann:{key}", f"ANN:{key}x", "ANN:", f"ANN:{key}".encode(), b"===", b"\xff", "😀:x"):
        assert ask(wrong) == 401, wrong
    assert ask(f"ANN:{key}") == 200
    service.revoke_token("ANN")
    assert ask(f"ANN:{key}") == 401
    with pytest.raises(SetupError, match="the name of an access key has no colon"):
        service.create_token("A:B", "reader", access_key=True)


# ------------------------------------------------------------------ roles


def _routes(api):
    """Every way to write, from the declarations: (method, path with {key}, needs an administrator)."""
    for entity_set in api.sets:
        key = "('{key}')" if entity_set.key.edm == "Edm.String" else "({key})"
        if entity_set.create:
            yield "POST", entity_set.name, entity_set.administrator
        if entity_set.change:
            yield "PATCH", entity_set.name + key, entity_set.administrator
        if entity_set.delete:
            yield "DELETE", entity_set.name + key, entity_set.administrator
        for action in entity_set.actions:
            administrator = entity_set.administrator or action.administrator
            yield "POST", f"{entity_set.name}{key}/Microsoft.NAV.{action.name}", administrator
            yield action.name.upper(), f"{entity_set.name}{key}/Microsoft.NAV.{action.name}", administrator


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """An environment with a row in every set, and one key of each."""
    client = open_client(tmp_path_factory.mktemp("furnished"))
    with client.http.service.store.write() as connection:
        furnish(connection)
    client.http.service.create_setup({"product_id": "Custom"})
    keys = {api: {s.name: read_rows(client.http.service, s, Query(top=1))[0] for s in api.sets} for api in APIS}
    yield client, {api: {s.name: getattr(keys[api][s.name], s.key.attribute) for s in api.sets} for api in APIS}
    client.http.service.store.close()


@pytest.mark.rule("N4", "X2")
@pytest.mark.parametrize("api", APIS, ids=lambda api: api.version)
@pytest.mark.parametrize("role", ["reader", "operator", "administrator", "", "king"])
def test_what_a_role_may_do_on_every_route(furnished, role, api):
    """Nothing is written: what is permitted fails for Data-Access-Intent, which is looked at after the permission."""
    client, keys = furnished
    reads, writes, sets_up = {"reader": (True, False, False), "operator": (True, True, False),
                              "administrator": (True, True, True)}.get(role, (False,) * 3)

    def refused(method, path):
        url = parse_url("http://x", f"/api/{api.route}/{path}".encode(), b"")
        try:
            serve(client.http.service, Caller(number(1), "x", role), method, url, {"data-access-intent": "ReadOnly"}, b"{}")
        except ODataError as error:
            return error.status == 403
        return False

    for path in ["", "$metadata", *(s.name for s in api.sets), *(f"{s.name}/$count" for s in api.sets)]:
        for method in ("GET", "HEAD", "OPTIONS"):
            assert refused(method, path) is not reads, (method, path)
    assert refused("POST", "$batch") is not reads            # what its items may do is asked for each of them
    for method, path, administrator in _routes(api):
        allowed = sets_up if administrator else writes
        assert refused(method, path.format(key=keys[api].get(path.partition("(")[0]))) is not allowed, (method, path)
    assert len(list(_routes(api))) > 20
