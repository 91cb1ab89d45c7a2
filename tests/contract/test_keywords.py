"""The attributes that the light packages know are those of pydicom."""

from __future__ import annotations

from pathlib import Path

from pydicom.datadict import keyword_dict

from segnode_contract import keywords


def test_the_list_is_that_of_pydicom() -> None:
    """To write it again: tag and keyword of each line below, in the order of tags."""
    lines = sorted(f"{tag:08X} {keyword}" for keyword, tag in keyword_dict.items() if keyword)
    listed = Path(keywords.__file__).with_name("keywords.txt")
    assert listed.read_text().splitlines() == lines
    assert keywords.keywords()["0008103E"] == "SeriesDescription"
