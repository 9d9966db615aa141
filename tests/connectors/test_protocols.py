"""Every connector has what the protocols say, also those whose servers are not at hand."""

import importlib
import inspect

import pytest

from skylift.connectors import _SOURCES, _TARGETS, Source, Target, Transaction


def classes(modules, ending, protocol):
    for module in sorted(set(modules.values())):
        for name, kind in vars(importlib.import_module(module)).items():
            if inspect.isclass(kind) and kind.__module__ == module and name.endswith(ending) and not name.startswith("_"):
                yield pytest.param(kind, protocol, id=name)


@pytest.mark.parametrize(("kind", "protocol"), [*classes(_SOURCES, "Source", Source), *classes(_TARGETS, "Target", Target),
                                                *classes(_TARGETS, "Transaction", Transaction)])
def test_a_connector_takes_the_arguments_of_its_protocol(kind, protocol):
    for name, asked in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith("_"):
            has = inspect.signature(getattr(kind, name))
            assert [*has.parameters] == [*inspect.signature(asked).parameters], name


def test_each_kind_of_url_has_such_a_connector():
    found = [param.id for modules, ending, protocol in ((_SOURCES, "Source", Source), (_TARGETS, "Target", Target),
             (_TARGETS, "Transaction", Transaction)) for param in classes(modules, ending, protocol)]
    assert len(found) == len({*_SOURCES.values()}) + 2 * len({*_TARGETS.values()}), found
