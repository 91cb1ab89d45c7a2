"""Places are found for all that tomllib reads, whatever way it is written."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnode_plugin.toml_places import Place, places

CONFIG = Path(__file__).parents[2] / "orthanc-config"
ODD = '''\
top.level = 1 # "no = [text
"quoted [[key]]".'an # other' = """three
[lines] = { of "text" }"""
empty = ""
[[routes]]
name = "a = b" # [[routes]]
when = 1979-05-27 07:32:00
bare = [ 1, 2.5, -inf, [true, "]"], ]
[routes.where]
all = [
  { fact = "x", at_most = 3 }, # one
  { not = { attribute = 'C:\\', matches = \'\'\'it's\'\'\' } },

  # none
  { any = [
    { fact = "y", one_of = ["a,b", "c"] },
  ] }
]
[[ routes ]]
where.all = [{ a.b.c = 1, a.b.d = {} }]
[[routes.series]]
role = "t1"
[[routes.series]]
role = "t2"
[routes.series.where]
fact = "z"
[node]
name = "x"'''


def as_data(place: Place) -> Any:
    """Return the keys and texts of a place as tomllib gives them."""
    if not place.inside:
        return place.text or None
    if 1 in place.inside:
        return [as_data(each) for each in place.inside.values()]
    return {key: as_data(each) for key, each in place.inside.items()}


def bare(data: Any) -> Any:
    """Return data with texts only: nothing is known of what is empty, and of other values."""
    if isinstance(data, dict):
        return {key: bare(each) for key, each in data.items()} or None
    if isinstance(data, list):
        return [bare(each) for each in data] or None
    return data or None if isinstance(data, str) else None


@pytest.mark.parametrize(
    "text",
    [
        ODD,
        *((CONFIG / name).read_text() for name in ("segnode.toml", "demo.toml")),
        "",
        "# nothing",
    ],
)
def test_everything_has_its_place(text: str) -> None:
    assert (as_data(places(text)) or {}) == (bare(tomllib.loads(text)) or {})


ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
NAMES = st.sampled_from(["a", "b", '"c d"', "'e.f'", "g-1"])
TEXTS = st.text("ab#[]{}=, .'\"\\\n", max_size=6)
VALUES = st.recursive(
    st.one_of(
        st.integers().map(str),
        TEXTS.map(lambda t: '"' + t.translate(str.maketrans(ESCAPED)) + '"'),
        TEXTS.filter(lambda t: "'" not in t).map(lambda t: f"'''{t}'''"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda all_: "[\n" + ", # ]\n".join(all_) + "]"),
        st.dictionaries(NAMES, inner, max_size=3).map(
            lambda all_: "{" + ", ".join(f"{k} = {v}" for k, v in all_.items()) + "}"
        ),
    ),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.lists(VALUES, max_size=3))
def test_no_value_hides_the_place_of_another(table: dict[str, str], rows: list[str]) -> None:
    text = "".join(f"{key} = {value}\n" for key, value in table.items())
    for row in rows:
        text += f"[[rows]] # [x]\nvalue = {row}\nend = 1\n"
    data = tomllib.loads(text)
    root = places(text)
    assert list(root.inside) == list(data)
    for number, row in enumerate(data.get("rows", []), 1):
        place = root.inside["rows"].inside[number]
        assert text[place.at :].startswith("[[rows]]")
        assert list(place.inside) == list(row)
        for key in row:
            assert text[place.inside[key].at :].startswith(f"{key} =")
