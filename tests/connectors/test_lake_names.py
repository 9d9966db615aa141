"""The folders that a lake's tables have: each name has its own, which any file system and object store takes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylift.connectors.lake_names import MAX_BYTES, escape, folder_of, unescape
from skylift.model import TargetName


@given(st.text(max_size=120))
def test_a_folder_name_tells_the_name_that_it_stands_for(name):
    folder = escape(name)

    assert re.fullmatch(r"[^/\\:*?\"<>|%=\[\]{}#'\x00-\x1f]+", folder) and folder[0] not in "._" and folder[-1] not in ". "
    assert len(folder.encode()) <= MAX_BYTES
    if "!~" not in folder:
        assert unescape(folder) == name


@given(st.lists(st.text("aA./\\_ %!é=😀", max_size=100), unique=True, max_size=30))
def test_different_names_have_different_folders(names):
    assert len({escape(name) for name in names}) == len(names)


@pytest.mark.parametrize(("name", "folder"), [
    (TargetName("CRONUS", "G_L Entry$437dbf0e-84ff"), "CRONUS/G_L Entry$437dbf0e-84ff"),
    (TargetName("", "Item"), "main/Item"),
    (TargetName("main", "Item"), "!6Dain/Item"),
    (TargetName("07.GCT RUS [LOCAL]", 'a/b\\c"d'), "07.GCT RUS !5BLOCAL!5D/a!2Fb!5Cc!22d"),
    (TargetName("", "_hidden"), "main/!5Fhidden"), (TargetName("", ".."), "main/!2E!2E"), (TargetName("", "nul.x"), "main/!6Eul.x"),
    (TargetName("", "50%=x"), "main/50!25!3Dx"), (TargetName("", ""), "main/!"), (TargetName("", "Größe Ω"), "main/Größe Ω"),
])
def test_folders_are_readable_and_safe(name, folder):
    assert folder_of(name) == folder
