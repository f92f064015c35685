"""Fused images and their maps as DICOM Parametric Maps (PS3.3 A.75), made by highdicom.

A Parametric Map holds real numbers with their place in the patient and is marked as research by its own attribute
(Content Qualification RESEARCH). Nothing of a source file's header is used: patient and study are pseudonyms, and all
unique identifiers are derived from what is written, so that equal content makes equal files.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clinfuse import RESEARCH_USE, __version__
from clinfuse.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

MR_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
SERIES_NUMBERS = {"fused": 9001, "uncertainty": 9002, "interval": 9003, "anatomy": 9004, "companion": 9005}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SKEW_TOLERANCE = 1e-4


def parametric_map(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    key: str,
    case_id: str,
    explanation: str,
    simulated: bool,
) -> bytes:
    """One map as a DICOM file.

    Args:
        array: (W, H, D) finite values, in file order.
        affine: (4, 4), voxel index → RAS+ mm; axes at right angles.
        key: "fused", "uncertainty", "interval", "anatomy" or "companion"; becomes the content label.
        case_id: pseudonym; becomes patient id and patient name.
        explanation: what the values are, in words.
        simulated: whether the companion is a simulated CT, which the series then says.

    Returns:
        A DICOM Part 10 file: 32-bit float pixels, one frame per slice, in LPS+ mm.

    Raises:
        InputError: the axes are not at right angles, which DICOM's planes cannot hold.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    _check_orthogonal(affine, case_id)
    frames = np.ascontiguousarray(np.asarray(array, np.float32).transpose(2, 1, 0))
    place = RAS_TO_LPS @ affine[:, [2, 1, 0, 3]]
    content = hashlib.sha256(frames.tobytes() + place.tobytes() + f"{key} {case_id}".encode()).digest()
    study, reference = _uid(f"study {case_id}"), _uid(f"frame of reference {case_id}")
    volume = hd.Volume(frames, place, coordinate_system="PATIENT", frame_of_reference_uid=reference)
    low, high = float(min(frames.min(), 0)), float(max(frames.max(), 1))
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=key.upper()[:16],
        lut_explanation=explanation[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
    )
    made = hd.pm.ParametricMap(
        source_images=[_stand_in(volume, case_id, study, reference)],
        pixel_array=volume,
        series_instance_uid=_uid(content.hex() + " series"),
        series_number=SERIES_NUMBERS[key],
        sop_instance_uid=_uid(content.hex()),
        instance_number=1,
        manufacturer="clinfuse",
        manufacturer_model_name="clinfuse",
        software_versions=__version__,
        device_serial_number="none",
        contains_recognizable_visual_features=key != "uncertainty",
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation((low + high) / 2, high - low)],
        content_label=key.upper()[:16],
        content_description=f"{key}: {explanation}"[:64],
    )
    made.SeriesDescription = f"{key}, {'simulated CT, ' if simulated else ''}research use only"
    made.ImageComments = RESEARCH_USE
    _repeatable(made, _uid(f"dimensions {content.hex()}"))
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(text: str) -> str:
    """A unique identifier derived from a text (PS3.5 B.2: 2.25 and a UUID as one number)."""
    return f"2.25.{uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4).int}"


def _check_orthogonal(affine: NDArray[np.float64], case_id: str) -> None:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    skew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if skew > SKEW_TOLERANCE:
        raise InputError(
            "the anatomy image's axes are not at right angles",
            expected="a rigid orientation for DICOM",
            found=f"cosine {skew:.2g} between two axes",
            case=case_id,
            todo="ask for NIfTI",
        )


def _stand_in(volume: Any, case_id: str, study: str, reference: str) -> Dataset:
    """The source image that highdicom takes patient and study from: a pseudonym's, without any date or name."""
    from pydicom import Dataset

    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = MR_STORAGE, _uid(f"stand-in {case_id}")
    image.PatientID, image.PatientName = case_id, f"{case_id}^"
    image.PatientBirthDate = image.PatientSex = image.AccessionNumber = ""
    image.StudyInstanceUID, image.FrameOfReferenceUID = study, reference
    image.StudyID = image.StudyDate = image.StudyTime = image.ReferringPhysicianName = ""
    image.SeriesInstanceUID, image.Modality = _uid(f"source series {case_id}"), "MR"
    image.Rows, image.Columns = (int(n) for n in volume.shape[1:3])
    image.ImageOrientationPatient = [float(x) for x in volume.direction_cosines]
    image.ImagePositionPatient = [float(x) for x in volume.position]
    image.PixelSpacing = [float(x) for x in volume.pixel_spacing]
    image.SliceThickness = float(volume.spacing_between_slices)
    image.PositionReferenceIndicator = ""
    return image


def _repeatable(made: Dataset, dimensions: str) -> None:
    """Fixed dates, so that a file tells nothing about when someone was examined, and a derived dimension UID."""
    fixed = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}
    for element in list(made.iterall()):
        if element.VR in fixed and element.value:
            element.value = fixed[element.VR]
        elif element.keyword == "DimensionOrganizationUID":
            element.value = dimensions
