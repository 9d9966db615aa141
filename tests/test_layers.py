"""Imports point down the layers, read from the source text, so that an import inside a function counts too."""

import ast
from pathlib import Path

import skylift

ROOT = Path(skylift.__file__).parent
# From the top; modules of one line may import each other.
LAYERS = [["__main__"], ["cli"], ["app"], ["web"], ["api"], ["migration"], ["sample"], ["validation"], ["upgrades"], ["engine"],
          ["products"], ["store"], ["connectors"], ["telemetry"], ["query"], ["model"], ["runs"], ["settings"], ["losses"], ["errors"],
          ["buffers"]]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
STRANGERS = {("engine", "store"), ("products", "store"), ("upgrades", "store"), ("validation", "store"), ("store", "connectors"),
             ("api", "engine"), ("api", "connectors"), ("cli", "api"), ("sample", "engine")}


def imports():
    """(file, its layer, layer it imports) for every import of skylift within skylift."""
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ["skylift", *parts[:-1]]
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = package[:len(package) - node.level + 1] if node.level else []
                names = [".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                if name.startswith("skylift."):
                    yield "/".join(parts), parts[0], name.split(".")[1]


def test_every_module_has_a_layer():
    assert {name for _, *names in imports() for name in names} <= RANK.keys()


def test_no_import_points_up():
    assert [f"{path} imports {to}" for path, layer, to in imports() if RANK[to] < RANK[layer]] == []


def test_layers_that_do_not_know_each_other_do_not():
    assert [f"{path} imports {to}" for path, layer, to in imports() if (layer, to) in STRANGERS] == []


def test_the_reading_sees_what_there_is():
    assert ("engine/plan", "engine", "products") in set(imports())
