"""The limits of the service, one row each, for those who ask instead of finding out. Source: behaviour.md §11, §12.17."""

from __future__ import annotations

import math
from dataclasses import dataclass

from skylift.api.filter import MAX_DEPTH
from skylift.api.parse import MAX_EXPAND_DEPTH
from skylift.migration import Migration
from skylift.migration.changes import MOST
from skylift.settings import Settings

MAX_QUERY = 8099                 # characters of a URL's query
MOST_ITEMS = 100                 # requests of a batch


@dataclass(frozen=True, slots=True)
class Limit:
    name: str
    value: int | None            # None = there is none
    unit: str
    setting: str                 # '' = fixed
    about: str


# name, unit, setting, what it bounds
_OF_SETTINGS = (
    ("pageRows", "rows", "page_size", "a page of an answer"),
    ("bodyBytes", "bytes", "max_body_bytes", "the body of a request"),
    ("requests", "requests", "api_requests", "requests of a caller within `requestWindow`"),
    ("requestWindow", "seconds", "api_window_s", "the time over which `requests` are counted"),
    ("requestsRunning", "requests", "api_running", "requests of a caller that are worked on at once"),
    ("requestsQueued", "requests", "api_queue", "requests of a caller that wait for their turn"),
    ("requestsOpen", "requests", "api_connections", "requests of a caller that are open at once"),
    ("requestWait", "seconds", "api_wait_s", "how long a request waits for its turn"),
    ("requestBody", "seconds", "api_body_s", "how long the body of a request takes to arrive"),
    ("requestWork", "seconds", "api_work_s", "how long a request is worked on"),
    ("requestAnswer", "seconds", "api_answer_s", "how long an answer is waited for"),
    ("subscriptionsOnline", "subscriptions", "subscriptions_online", "subscriptions, where one is made under a /v2.0 root"),
    ("subscriptionsOnPremises", "subscriptions", "subscriptions_on_premises", "subscriptions, where one is made under another root"),
    ("subscriptionLife", "days", "webhook_days", "how long a subscription lasts without being renewed"),
    ("notificationRetries", "hours", "webhook_give_up_h", "how long a notification that fails is tried again"),
    ("notificationAnswer", "seconds", "webhook_timeout_s", "how long a receiver takes to answer a notification"),
    ("notificationsLogged", "calls", "webhook_log", "calls of receivers that the log keeps"),
    ("upgradeStep", "seconds", "upgrade_step_s", "how long a step of an upgrade pack takes"),
    ("tablesCopiedAtOnce", "threads", "workers", "threads that copy"),
)
_FIXED = (
    ("batchRequests", MOST_ITEMS, "requests", "requests in a $batch"),
    ("queryCharacters", MAX_QUERY, "characters", "the query of a URL"),
    ("filterDepth", MAX_DEPTH, "levels", "nesting of a filter"),
    ("expandDepth", MAX_EXPAND_DEPTH, "levels", "nesting of $expand"),
    ("changesToldSingly", MOST, "changes", "changes of a set that a notification lists; more are one of the type `collection`"),
    ("companyNameCharacters", 50, "characters", "the name of a source company"),
    ("companies", None, "companies", "companies of a migration, and of a run"),
    ("tables", None, "tables", "tables of a company, and of a run"),
    ("runSize", None, "bytes", "what a run copies, and the size of source and target"),
    ("runTime", None, "seconds", "how long a run, a table or a data upgrade takes"),
    ("valueBytes", None, "bytes", "a single value, beyond what source and target can hold"),
)


def limits(service: Migration) -> list[Limit]:
    """By name, as the settings of this process have them."""
    settings: Settings = service.settings
    rows = [Limit(name, math.ceil(getattr(settings, setting)), unit, setting, about) for name, unit, setting, about in _OF_SETTINGS]
    return sorted([*rows, *(Limit(name, value, unit, "", about) for name, value, unit, about in _FIXED)], key=lambda limit: limit.name)
