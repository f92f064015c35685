"""Small head-like sources written to a temporary folder: volumes, picture slices, DICOM; nothing is shipped."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

SHAPE, SPACING = (12, 32, 28), (5.0, 5.0, 5.0)
TURN = np.deg2rad(4.0)
AFFINE = np.array(
    [
        [-5.0, 0.0, 0.0, 67.0],
        [0.0, 5.0 * np.cos(TURN), -5.0 * np.sin(TURN), -75.0],
        [0.0, 5.0 * np.sin(TURN), 5.0 * np.cos(TURN), -30.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def head(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """MR (a.u.), CT (HU) and brain mask (D, H, W) of a ball-shaped head of 5 mm voxels: radius 65 mm."""
    rng = np.random.default_rng(seed)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt((z / 1.0) ** 2 * 0.3 + y**2 + x**2)
    brain, skull, skin = radius < 45, (radius >= 45) & (radius < 56), (radius >= 56) & (radius < 66)
    noise = rng.normal(0, 1, SHAPE)
    mr = np.where(brain, 600, 20) + np.where(skin, 800, 0) + noise * 12 + 40 * np.sin(x / 12) * brain
    ct = np.where(brain, 35, -1000) + np.where(skull, 1900, 0) + np.where(skin, 1040, 0) + noise * 3
    return mr.astype(np.float32), ct.astype(np.float32), brain.astype(np.uint8)


def write_nifti(path: Path, volume: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> Path:
    """Save a (D, H, W) array as NIfTI in (x, y, z) order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine), path)
    return path


def write_pair(folder: Path, seed: int = 0, names: tuple[str, str] = ("mr", "ct")) -> Path:
    """A folder with MR and CT as NIfTI."""
    mr, ct, _ = head(seed)
    write_nifti(folder / f"{names[0]}.nii.gz", mr)
    write_nifti(folder / f"{names[1]}.nii.gz", ct)
    return folder


def synthrad(root: Path, patients: int = 3) -> Path:
    """`Task1/brain/1BA00x/{mr,ct,mask}.nii.gz`."""
    for number in range(1, patients + 1):
        folder = write_pair(root / "Task1" / "brain" / f"1BA{number:03d}", number)
        write_nifti(folder / "mask.nii.gz", head(number)[2])
    (root / "Task1" / "brain" / "overview").mkdir()
    return root


def pictures(root: Path, patients: int = 3, numbers: tuple[int, ...] = (3, 4, 5, 7)) -> Path:
    """`case_<id>/{MRI,CT}/<id><slice>.png` with a brain window and a head holder; slice 6 is missing."""
    for patient in range(1, patients + 1):
        mr, ct, _ = head(patient)
        grey = {"MRI": np.clip(mr / 5, 0, 255), "CT": np.clip((ct + 10) / 90 * 255, 0, 255)}
        for name, volume in grey.items():
            folder = root / f"case_{patient}" / name
            folder.mkdir(parents=True)
            for index, number in enumerate(numbers):
                plane = volume[4 + index].astype(np.uint8)[::-1, ::-1]
                big = np.kron(plane, np.ones((5, 5), np.uint8))
                if name == "CT":
                    big[-3:, 20:120] = 255
                Image.fromarray(big).save(folder / f"{patient}{number:03d}.png")
    return root


def bids(root: Path, subjects: int = 2) -> Path:
    """`sub-0x/anat/…T1w`, `sub-0x/ct/…ct`, lesion mask in derivatives."""
    for number in range(1, subjects + 1):
        mr, ct, brain = head(number)
        name = f"sub-0{number}"
        write_nifti(root / name / "anat" / f"{name}_T1w.nii.gz", mr)
        write_nifti(root / name / "ct" / f"{name}_ct.nii.gz", ct)
        lesion = brain * 0
        lesion[5:7, 14:18, 12:16] = 1
        place = root / "derivatives" / "manual" / name / "anat"
        write_nifti(place / f"{name}_label-lesion_mask.nii.gz", lesion)
    return root


def write_series(
    folder: Path,
    volume: NDArray[np.float32],
    modality: str = "CT",
    *,
    tilt_deg: float = 0.0,
    heights: list[float] | None = None,
    patient: str = "SECRET^NAME",
) -> Path:
    """A (D, H, W) array as a DICOM series with identifiers planted in many tags; slices may be sheared by a tilt."""
    folder.mkdir(parents=True, exist_ok=True)
    series, frame = generate_uid(), generate_uid()
    d_mm, h_mm, w_mm = SPACING
    heights = heights or [index * d_mm for index in range(len(volume))]
    angle = np.deg2rad(tilt_deg)
    for index, plane in enumerate(volume):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(str(folder), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.PatientName, data.PatientID, data.PatientBirthDate = patient, patient, "19410203"
        data.InstitutionName = data.ReferringPhysicianName = data.StudyDescription = patient
        data.SeriesDescription = data.ImageComments = data.AccessionNumber = patient[:16]
        data.StudyDate = data.SeriesDate = data.AcquisitionDate = "20200304"
        data.SeriesInstanceUID, data.FrameOfReferenceUID = series, frame
        data.Modality, data.SamplesPerPixel, data.PhotometricInterpretation = modality, 1, "MONOCHROME2"
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing, data.SliceThickness = [h_mm, w_mm], d_mm
        data.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))]
        data.ImagePositionPatient = [-70.0, -80.0, heights[index]]
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024 if modality == "CT" else 0
        stored = np.round(plane - data.RescaleIntercept).astype("<i2")
        data.PixelData = stored.tobytes()
        pydicom.dcmwrite(folder / f"{index:03d}.dcm", data)
    return folder
