"""The reference pages, made from the resource declarations: python -m skylift.api.reference v1.0 > docs/reference.md

And python -m skylift.api.reference v2.0 > docs/reference-v2.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from skylift.api.apis import APIS
from skylift.api.batch import ROLLED_BACK
from skylift.api.batch_formats import MOST_ITEMS
from skylift.api.declare import Action, Api, EntitySet, Property
from skylift.api.filter import FUNCTIONS
from skylift.api.render import caption, encoded
from skylift.settings import Settings

_DEFAULT: dict[str, Any] = {f.name: f.default for f in fields(Settings)}
_HEAD = f"""# API reference

Made from `src/skylift/api/resources.py` by `python -m skylift.api.reference > docs/reference.md`; do not edit by hand.

The API is that of Business Central's cloud migration (Cloud Migration API v1.0), OData v4. It is served under

- `/v2.0/{{tenant}}/{{environment}}/api/microsoft/cloudMigration/v1.0`
- `/v2.0/{{environment}}/api/microsoft/cloudMigration/v1.0`
- `/{{instance}}/api/microsoft/cloudMigration/v1.0`
- `/api/v1.0`, also behind `/{{instance}}` or `/v2.0/{{tenant}}/{{environment}}`

and shows the same under each. `GET` of the root lists the entity sets, `$metadata` describes them. Tenant, environment and
instance can be any name. `/health` is the only address that needs no token.

**Sign-in.** `Authorization: Bearer <token>`; make one with `skylift token create NAME --role ROLE`. A `reader` reads, an
`operator` also writes and calls actions, an `administrator` also sets the migration up. Under roots without `/v2.0` also
`Authorization: Basic`, with a token's name and the token (setting `basic_auth`). Where `jwt_issuer` and `jwt_audience` name an
issuer, its tokens sign in too: asymmetrically signed, in time, of a tenant in `jwt_tenant`, with a role or scope that
`jwt_administrators`, `jwt_operators` or `jwt_readers` lists.

**Companies.** All sets but `companies`, `subscriptions` and `entityDefinitions` belong to a company: named in the path
(`companies(<id>)/cloudMigrationStatus`), by `?company=`, or by the header `Company` or `CompanyId`, each an id or a name;
otherwise the configured one is taken. Every company shows the same rows.

**Reading.** `$filter` `$select` `$expand` `$orderby` `$top` `$skip` `$count`, `/$count`, `/property`, `/property/$value`. A filter
knows `eq ne gt ge lt le in and or not` and the functions `{" ".join(FUNCTIONS)}`;
anything else that OData has is answered with 501. Text compares case-sensitively, and `*` in the literal of `eq` and `ne`
stands for any characters. Pages have at most {_DEFAULT["page_size"]:,} rows (setting `page_size`; less with
`Prefer: odata.maxpagesize=N`) and link to the next one.

**Writing.** `PATCH` needs `If-Match` with the entity's `@odata.etag`, or `*`. Actions are called by `POST` to
`.../{{set}}(<id>)/Microsoft.NAV.{{action}}` without a body, or with the action's name in capitals as the HTTP method; they answer 204.

**Batches** of at most {MOST_ITEMS} requests go to `$batch` by `POST`, as JSON or `multipart/mixed`; each is answered as it would be alone.
The first that fails ends the batch, unless `Prefer: odata.continue-on-error` is sent. A change set, the requests of an
`atomicityGroup` and a batch with `Isolation: snapshot` are done wholly or not at all; a success that was taken back is marked by the
header `{ROLLED_BACK}`. `runReplication`, `runDataUpgrade`, `disableReplication` and `completeCloudMigration` commit: they and
what was before them stay. `$id` begins the URL of a request about the entity of an earlier one.

**Options and enums** are spelt by caption (`In Progress`). `$schemaversion=2.0` or `2.1` asks for member names (`InProgress`,
`Not_x0020_Initialized`); the default is the setting `schema_version`. Input may be spelt either way.

**Errors** are `{{"error": {{"code", "message"}}}}`; the message ends with the id that is also in the header `request-id` and the log. The
header `x-skylift-code` tells business refusals apart.

**Webhooks.** A subscription's receiver is called by `POST` {_DEFAULT["webhook_merge_s"]:g} seconds (`webhook_merge_s`) after a change,
with `{{"value": [..]}}`: an item for each entity that has changed, with `subscriptionId`, `clientState`, `expirationDateTime`, `resource`,
`changeType` and `lastModifiedDateTime`. `resource` is the path to fetch, from `api` on. Above 1,000 there is one item of the type
`collection`, whose `resource` filters by `lastModifiedDateTime`. Any 2xx is well; after 408, 429, 5xx or no answer within
{_DEFAULT["webhook_timeout_s"]:g} seconds the call is made again, for {_DEFAULT["webhook_give_up_h"]:g} hours; any other answer ends the
subscription. A receiver may be told twice. It is called with https; a private network only if `webhook_networks` lists it, then also
without. With `webhook_secret` calls have the headers `webhook-id`, `webhook-timestamp` and `webhook-signature` of
[Standard Webhooks](https://www.standardwebhooks.com).

**Limits** for each caller, all settings: {_DEFAULT["api_requests"]:,} requests (`api_requests`) in
{_DEFAULT["api_window_s"] / 60:.0f} minutes (`api_window_s`), {_DEFAULT["api_running"]} at once (`api_running`), {_DEFAULT["api_queue"]}
waiting (`api_queue`) for up to {_DEFAULT["api_wait_s"] / 60:.0f} minutes (`api_wait_s`), {_DEFAULT["api_connections"]} open in all
(`api_connections`). What is over a limit is answered with 429, what has waited too long with 503, both with `Retry-After`.
Browsers may call from the origins in `cors_origins`, by default from none.
"""
_HEAD_V2 = """# API v2.0: what v1.0 leaves out

Made from `src/skylift/api/resources_v2.py` by `python -m skylift.api.reference v2.0 > docs/reference-v2.md`; do not edit by hand.

The Cloud Migration API v1.0 is served as it is in Business Central; what skylift can do besides is in an API of its own, under

- `/v2.0/{tenant}/{environment}/api/skylift/cloudMigration/v2.0`
- `/v2.0/{environment}/api/skylift/cloudMigration/v2.0`
- `/{instance}/api/skylift/cloudMigration/v2.0`, also without an instance

Sign-in, companies, reading, writing, batches, options, errors, webhooks and limits are those of [v1.0](reference.md), but:

- Row counts and bytes are `Int64`.
- What is not known may be `null`, where the table says so. No filter and no order goes by such a property, nor by one that is computed.
- Actions may have parameters: members of a JSON object in the body. One that is unknown, of another type, or required and missing is
  refused with 400.
- `POST` answers 201 with the new entity.
- A `POST` of `runs`, `runDataUpgrade`, `resetCloudData`, `assess`, `validate` or `accept` may carry the header `Idempotency-Key`, a text of
  up to 255 characters that the caller makes up. Sent again with the same key within 24 hours, by the same token, it is answered as if it
  were the first time and nothing is done again; with the key of another request it is refused (`x-skylift-code: IdempotencyKey`). A key
  counts only once the request was carried out. The other actions do no harm when they are sent again.
"""


def reference(api: Api) -> str:
    """The page as Markdown. What all APIs have in common, and the settings, stand on that of the first one."""
    first = api is APIS[0]
    sections = (*map(_section, api.sets), *([_settings()] if first else []))
    return (_HEAD if first else _HEAD_V2) + "".join("\n" + "\n".join(section) + "\n" for section in sections)


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield ("In `settings.toml` of the home folder; `SKYLIFT_<NAME>` in the environment beats it, and a flag of the command that.\n"
           "`{home}` in a URL stands for the home folder.\n")
    yield "| setting | type | default | |\n|---|---|---|---|"
    for setting in fields(Settings):
        kind, default = str(setting.type).replace("Path", "str"), f"`{setting.default}`" if setting.default != "" else ""
        choice = ", ".join(f"`{value}`" for value in setting.metadata["one_of"])
        yield f"| `{setting.name}` | {kind} | {default} | {setting.metadata['help']}{f': {choice}' if choice else ''} |"


def _section(entity_set: EntitySet) -> Iterator[str]:
    yield f"## {entity_set.name}\n"
    yield entity_set.about + "\n"
    yield f"Type `Microsoft.NAV.{entity_set.entity}`, key `{entity_set.key.name}`. {_verbs(entity_set)}"
    if entity_set.aliases:
        yield f"Also found as {', '.join(f'`{alias}`' for alias in entity_set.aliases)}."
    yield "\n| property | type | written | |\n|---|---|---|---|"
    for prop in entity_set.properties:
        yield f"| `{prop.name}` | {_type(prop)} | {'yes' if prop.writable else ''} | {_remark(prop)} |"
    if entity_set.navigations:
        yield "\nNavigation: " + ", ".join(f"`{n.name}`{'' if n.many else ' (one)'}" for n in entity_set.navigations) + "."
    if entity_set.actions:
        yield "\n| action | |\n|---|---|"
        for action in entity_set.actions:
            yield f"| `{action.name}` | {action.about}{_parameters(action)} |"


def _parameters(action: Action) -> str:
    """What it takes, as the end of a sentence about it."""
    told = [f"`{p.name}` ({_type(p)}{', required' if p.required else ''}){f': {p.about}' if p.about else ''}" for p in action.parameters]
    return (" Parameters: " + "; ".join(told) + "." if told else "") + (" Needs an administrator." if action.administrator else "")


def _verbs(entity_set: EntitySet) -> str:
    one = [method for method in entity_set.methods(single=True) if method not in ("HEAD", "OPTIONS")]
    verbs = [*one, *(["POST"] if entity_set.create else [])]
    return f"Methods: {', '.join(verbs)}."


def _type(prop: Property) -> str:
    kind = "String" if prop.values else prop.edm.replace("Edm.", "").replace("Microsoft.NAV.", "")
    return kind + (f"({prop.max_length})" if prop.max_length else "")


def _remark(prop: Property) -> str:
    remarks = []
    if prop.values is not None:
        spelt = [(f"`{caption(v)}`" if caption(v).strip() else "one blank") + (f" = `{encoded(v)}`" if encoded(v) != caption(v) else "")
                 for v in prop.values]
        kind = f"enum `{prop.edm}`: " if "." not in prop.edm else ""
        remarks.append(kind + ", ".join(spelt))
    if prop.about:
        remarks.append(prop.about)
    if prop.nullable:
        remarks.append("null where it is not known")
    if prop.secret:
        remarks.append("answered to the call that sets it, then empty")
    return "; ".join(remarks)


if __name__ == "__main__":
    print(reference(next(api for api in APIS if api.version == sys.argv[1])), end="")
