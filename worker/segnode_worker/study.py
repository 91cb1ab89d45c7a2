"""What a result has in common with its images: patient and study, copied byte by byte."""

from __future__ import annotations

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

_COPIED = (
    "SpecificCharacterSet",
    # Patient, PS3.3 C.7.1.1
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientSex",
    "QualityControlSubject",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    # General Study, PS3.3 C.7.2.1
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyID",
    "StudyDescription",
    "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence",
    "ProcedureCodeSequence",
    # Patient Study, PS3.3 C.7.2.2
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    # Clinical Trial Subject and Study, PS3.3 C.7.1.3 and C.7.2.3
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    # Frame of Reference, PS3.3 C.7.4.1
    "PositionReferenceIndicator",
)
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
"""Of type 2: present in every object, with or without a value (PS3.5 7.4.3)."""


def copy_study(source: Dataset, result: Dataset) -> None:
    """Copy patient, study and character set, without decoding a text.

    A text that its character set cannot decode thereby stays as it is. `result` is to be written
    in Explicit VR Little Endian.

    Parameters
    ----------
    source
        An image as it was read; it stays as it is.
    result
        Gets the attributes; those that the image lacks are removed from it, or left empty where
        the standard wants them present.
    """
    for keyword in _COPIED:
        tag = Tag(tag_for_keyword(keyword) or 0)
        if tag in source:
            result[tag] = _element(source, tag)
        elif keyword in _MAY_BE_EMPTY:
            result[tag] = DataElement(tag, dictionary_VR(tag), None)
        elif tag in result:
            del result[tag]
    if "FrameOfReferenceUID" not in result:  # a report lies in none
        result.pop("PositionReferenceIndicator", None)
    result.set_original_encoding(False, True, source.original_character_set)


def _element(source: Dataset, tag: int) -> DataElement | RawDataElement:
    element = source.get_item(tag)
    representation = dictionary_VR(tag)
    if not isinstance(element, RawDataElement) or representation in ("SQ", "CS"):
        return source[tag]
    return element._replace(VR=representation, is_implicit_VR=False, is_little_endian=True)
