"""A small model of a migration's life, written from behaviour.md §3-6 alone: what each verb answers, and what it leads to.

It knows two companies and the tables that all share ('') as one place each; what becomes of a place in a run is dealt out: its tables
are all copied, all failed, or all lost (the engine says nothing of them). States and codes are plain text on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BUSY = {"Replicating": "RunInProgress", "Upgrading": "UpgradeInProgress"}
TOLD = {"NotSetUp": "NotSetUp", "Enabled": "SetupNotComplete", "CreatingCompanies": "CreatingCompanies", "Ready": "NothingToUpgrade",
        "UpgradePending": "UpgradePending", "UpgradeFailed": "UpgradeFailed", "Upgraded": "Upgraded", "Disabled": "50016", **BUSY}


@dataclass
class Place:
    """A company, or what all share."""

    marked: bool = False
    created: bool = False
    upgrade: str = "None"
    copied: bool = False            # its tables' copies count (the registry says so)
    ever: bool = False              # some table of it was once successful
    failed: bool = False            # so say its tables' last rows of a run that copied
    found_wrong: bool = False       # so says a diagnostic run after that


@dataclass
class Run:
    kind: str
    places: set[str] | None = None      # settled when a coordinator has entered the tables; None = not yet
    asked: set[str] | None = None       # None = all
    only_failed: set[str] | None = None
    fates: dict[str, str] = field(default_factory=dict)     # of those that were told by a coordinator before
    cancelled: bool = False


@dataclass
class Model:
    names: tuple[str, str]
    state: str = "NotSetUp"
    reason: str = ""                    # disabled reason
    run: Run | None = None
    waiting: bool = False               # a finished run waits for its upgrade
    places: dict[str, Place] = field(default_factory=dict)

    def __post_init__(self):
        self.places = {name: Place() for name in (*self.names, "")}
        self.places[""].marked = True

    # ---------------------------------------------------------------- what a verb answers; "ok" has happened

    def set_up(self):
        if self.state in (*BUSY, "CreatingCompanies", "Upgraded", "UpgradeFailed"):
            return TOLD[self.state]
        if self.state in ("NotSetUp", "Disabled"):
            self.state, self.reason = "Enabled", ""
        return "ok"

    def complete_setup(self):
        return self.create_companies()

    def create_companies(self):
        if self.state not in ("Enabled", "Ready", "UpgradePending"):
            return TOLD[self.state]
        if any(p.marked and not p.created for p in self._companies()):
            self.state = "CreatingCompanies"
        elif self.state != "UpgradePending":
            self.state = "Ready"
        return "ok"

    def mark(self, name, value):
        if self.state in ("NotSetUp", "Upgrading"):
            return TOLD[self.state]
        self.places[name].marked = value
        return "ok"

    def start(self, kind, company=None, failed=False):
        if self.state not in ("Ready", "UpgradePending"):
            return TOLD[self.state]
        if company and not self.places[company].marked:
            return "CompanyNotMarked"
        asked = None if company is None else {company, ""}
        only = None
        if failed:
            only = {name for name in self.failed() if asked is None or name in asked}
            if not only:
                return "NothingFailed"
        chosen = [self.places[name] for name in self.names if self.places[name].marked and (asked is None or name in asked)]
        if not chosen:
            return "50003"
        if not all(p.created for p in chosen):
            return "CompanyNotCreated"
        if any(p.upgrade not in ("None", "Pending") for p in chosen):
            return "CompanyUpgraded"
        self.run = Run(kind, None, asked, only)
        self.state = "Replicating"
        return "ok"

    def cancel(self):
        if self.state == "Upgrading":
            return TOLD[self.state]
        if self.state != "Replicating":
            return "NoRun"
        self.run.cancelled = True
        return "ok"

    def upgrade(self):
        if self.state not in ("UpgradePending", "UpgradeFailed"):
            return TOLD[self.state]
        if code := self._open():
            return code
        marked = [p for p in self._companies() if p.marked]
        again = self.state == "UpgradeFailed"
        if not again and any(p.upgrade == "Failed" for p in marked):
            return "CompanyFailed"
        if any(p.upgrade != "Pending" and not (again and p.upgrade != "None") for p in marked):
            return "CompanyNotCopied"
        self.state, self.waiting = "Upgrading", False
        return "ok"

    def reset(self):
        if self.state in ("NotSetUp", "Upgraded", *BUSY):
            return TOLD[self.state]
        for place in self.places.values():
            place.copied = False
            if self.state == "UpgradeFailed":
                place.upgrade = "None"
        if self.state == "UpgradeFailed":
            self.state = "Ready"
        return "ok"

    def end(self, reason):
        """disable (''), Paused or Abandoned"""
        if self.state in ("NotSetUp", *BUSY):
            return TOLD[self.state]
        if self.state == "Disabled":
            if reason == "Paused":
                return "ok" if self.reason == "Paused" else "50016"
            if self.reason == "Completed":
                return "Completed" if reason == "Abandoned" else "ok"
            if self.reason == "Paused" or reason == "Abandoned":
                self.reason = reason
            return "ok"
        self.state, self.reason = "Disabled", reason
        return "ok"

    def complete(self, force=False, lag=False):
        if self.state == "Disabled" and self.reason == "Completed":
            return "ok"
        if self.state in ("NotSetUp", *BUSY):
            return TOLD[self.state]
        if not force:
            if self.state in ("UpgradePending", "UpgradeFailed"):
                return TOLD[self.state]
            marked = [p for p in self._companies() if p.marked]
            upgraded = self.state == "Disabled" and marked and all(p.upgrade == "Completed" for p in marked)
            if self.state != "Upgraded" and not upgraded:
                return "NotUpgraded"
            if code := self._open():
                return code
            if lag:
                return "FeedLag"
        self.state, self.reason = "Disabled", "Completed"
        return "ok"

    # ---------------------------------------------------------------- what a coordinator does

    def enter(self):
        """The tables of the run are settled."""
        run = self.run
        if run.places is None:
            meant = {name for name in self.places if (run.asked is None or name in run.asked)
                     and (run.only_failed is None or name in run.only_failed)}
            run.places = {name for name in meant if self.places[name].marked}
            self.waiting &= run.kind == "Diagnostic"
            for name in meant if run.kind == "Full" else ():
                self.places[name].copied = False

    def tell(self, fates):
        """What became of the tables is written down, by this coordinator or one before it."""
        for name in self.run.places:
            if fates[name] != "lost":
                self.run.fates[name] = fates[name]
                if self.run.kind != "Diagnostic" and fates[name] == "copied":
                    self.places[name].copied = True

    def create(self):
        for place in self._companies():
            place.created |= place.marked
        self.state = "Ready"

    def finish_run(self, broken=False):
        """The run ends: as its tables say, broken by the target, or cancelled before everything was done."""
        run, self.run = self.run, None
        done = run.fates if run.places is not None else {}
        places = run.places or set()
        cancelled = run.cancelled and not (places and places <= done.keys())
        diagnostic = run.kind == "Diagnostic"
        for name in places:
            place, fate = self.places[name], done.get(name, "unseen")
            place.found_wrong = diagnostic and fate == "failed"
            if not diagnostic:
                place.failed = fate != "copied"
                place.ever |= fate == "copied"
        good = broken is False and not cancelled and ("copied" in done.values() or not places)
        if diagnostic or run.places is None:            # one that never came so far as to name its tables has changed nothing
            self.state = "UpgradePending" if self.waiting else "Ready"
            return
        self.waiting = good
        self.state = "UpgradePending" if good else "Ready"
        if good:
            for place in self._companies():
                if place.marked and place.upgrade == "None" and place.ever:
                    place.upgrade = "Pending"

    def finish_upgrade(self, fails, done=()):
        """`done`: companies that a coordinator before this one had finished."""
        for name in self.names:
            place = self.places[name]
            if place.marked and place.upgrade not in ("None", "Completed"):
                place.upgrade = "Failed" if fails and name not in done else "Completed"
        self.state = "UpgradeFailed" if fails else "Upgraded"

    # ---------------------------------------------------------------- inside

    def _companies(self):
        return [self.places[name] for name in self.names]

    def failed(self):
        return {name for name, p in self.places.items() if (p.failed or p.found_wrong) and p.marked}

    def _open(self):
        if self.failed():
            return "TablesFailed"
        return "TablesNotCopied" if any(p.marked and not p.copied for p in self.places.values()) else ""
