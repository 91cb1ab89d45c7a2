"""Searches, as OHIF sends them and as the DICOMweb plugin wants them."""

from __future__ import annotations

import pytest
from flask import Flask

from segnode_plugin.web.qido import qido_shim


class Refused(Exception):
    """What Orthanc raises."""


def asked(address: str, *, decodes: bool = False) -> str:
    """Return what Orthanc is asked where a viewer asks for `address`."""
    seen: list[str] = []

    def rest_get(uri: str) -> bytes:
        seen.append(uri)
        return b"[]"

    answer = client(rest_get, decodes=decodes).get(address)
    assert answer.status_code == 200
    assert answer.content_type == "application/dicom+json"
    return seen[0]


def client(rest_get, *, decodes: bool = False):  # type: ignore[no-untyped-def] # Flask's own types
    app = Flask(__name__)
    app.register_blueprint(qido_shim(rest_get, refusal=Refused, decodes=lambda: decodes))
    return app.test_client()


def test_encoded_list_of_fields_is_asked_for_field_by_field() -> None:
    assert asked("/qido/studies?includefield=00081030%2C00080060&limit=101") == (
        "/dicom-web/studies?includefield=00081030&includefield=00080060&limit=101"
    )


@pytest.mark.parametrize(
    ("decodes", "value"),
    [(False, "MÜLLER^A B*"), (True, "M%C3%9CLLER%5EA%20B%2A")],
    ids=["an Orthanc that takes it as it stands", "an Orthanc that decodes"],
)
def test_name_reaches_orthanc_in_the_form_it_reads(decodes: bool, value: str) -> None:
    address = "/qido/studies?PatientName=M%C3%9CLLER%5EA+B%2A"
    assert asked(address, decodes=decodes) == f"/dicom-web/studies?PatientName={value}"


@pytest.mark.parametrize(
    "resource",
    [
        "studies",
        "series",
        "instances",
        "studies/1.2/series",
        "studies/1.2/instances",
        "studies/1.2/series/3.4/instances",
    ],
)
def test_every_search_of_the_standard_is_forwarded(resource: str) -> None:
    assert asked(f"/qido/{resource}") == f"/dicom-web/{resource}"


@pytest.mark.parametrize(
    "address",
    [
        "/qido/studies/1.2",
        "/qido/studies/1.2/metadata",
        "/qido/studies/../../system",
        "/qido/studies/1.2%3Fx/series",
        "/qido/servers",
    ],
)
def test_nothing_but_searches_can_be_reached(address: str) -> None:
    answer = client(lambda uri: pytest.fail(f"Orthanc was asked for {uri}")).get(address)
    assert answer.status_code == 404


@pytest.mark.parametrize("end", ["%26", "%23", "%0d%0a", "%00"], ids=["&", "#", "line end", "NUL"])
def test_value_cannot_carry_a_second_term(end: str) -> None:
    seen = client(lambda uri: pytest.fail(f"Orthanc was asked for {uri}"))
    answer = seen.get(f"/qido/studies?PatientID=1{end}limit=1")
    assert answer.status_code == 400


def test_name_of_a_term_cannot_carry_a_second_term() -> None:
    seen = client(lambda uri: pytest.fail(f"Orthanc was asked for {uri}"), decodes=True)
    assert seen.get("/qido/studies?PatientID%3D1%26x=1").status_code == 400


def test_ampersand_in_a_value_is_searched_for_where_orthanc_decodes() -> None:
    address = "/qido/studies?StudyDescription=head%26neck"
    assert asked(address, decodes=True) == "/dicom-web/studies?StudyDescription=head%26neck"


def test_refusal_of_orthanc_is_one_sentence() -> None:
    def refuse(uri: str) -> bytes:
        raise Refused("secret of the inside")

    answer = client(refuse).get("/qido/studies?NoSuchTag=1")

    assert answer.status_code == 400
    assert answer.text == "Orthanc refused the search; check the names of its terms."
