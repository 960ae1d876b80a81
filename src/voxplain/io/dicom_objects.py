"""DICOM objects of one run: a CT series, and SEG and Parametric Map objects over its slices.

All of them share one study, one frame of reference and one grid, whose slices ascend along the normal of the planes.
OHIF pastes the frames of a Parametric Map in the order of the file, so that this order is written here, too.
"""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from voxplain.geometry import Geometry
from voxplain.view.overlay import OKABE_ITO, WINDOWS

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap
    from highdicom.seg import Segmentation
    from pydicom import Dataset

MAKER = "Voxplain"
BODY_PART = "CHEST"
LONG, COMMENT = 64, 10240  # most characters of a description (LO) and of a comment (LT)
INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, slots=True)
class Study:
    """What all objects of one export share; `key` names the run's content, `comment` is what may be told of it.

    `synthetic` says that a model made the image; False that nobody here knows.
    """

    key: str
    geometry: Geometry
    synthetic: bool
    made: datetime
    comment: str = ""

    def title(self, text: str) -> str:
        """A description that says first what the image is."""
        return line(f"SYNTHETIC {text}" if self.synthetic else text)


def needed() -> None:
    """Raise ImportError, with the extra to install, where a package for DICOM is missing."""
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ImportError(f"DICOM needs the package {error.name}: run `pip install voxplain[dicom]`") from error


def uid(*parts: object) -> str:
    """A UID that follows from the parts alone (root 2.25, from a UUID: ITU-T X.667)."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def line(text: str, most: int = LONG) -> str:
    """The text as one value of DICOM: printable, without backslashes, cut to `most` characters."""
    plain = "".join(" " if letter == "\\" or not letter.isprintable() else letter for letter in text)
    return " ".join(plain.split())[:most].strip()


def ct_series(image: Float[np.ndarray, "slices rows columns"], study: Study) -> "Iterator[Dataset]":
    """One CT slice after the other, in HU rounded to whole numbers, lowest along the normal first."""
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    stored = np.clip(np.rint(image), INT16.min, INT16.max).astype("<i2")
    row, column, normal = directions(study.geometry)
    origin, step = study.geometry.affine[:3, 3], study.geometry.spacing[0]
    for number, pixels in enumerate(stored):
        made = _common(study)
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, uid(study.key, "ct", number)
        made.SeriesInstanceUID, made.SeriesNumber, made.Modality = uid(study.key, "ct"), 1, "CT"
        made.SeriesDescription = study.title("CT" if study.synthetic else "image under the maps")
        made.InstanceNumber, made.AcquisitionNumber = number + 1, 1
        made.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
        made.PatientPosition, made.BodyPartExamined, made.KVP = "HFS", BODY_PART, None
        made.FrameOfReferenceUID, made.PositionReferenceIndicator = uid(study.key, "frame"), ""
        made.ImagePositionPatient = _decimals(origin + number * step * normal)
        made.ImageOrientationPatient = _decimals([*row, *column])
        made.PixelSpacing, made.SliceThickness = _decimals(study.geometry.spacing[1:]), _decimals([step])[0]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.Rows, made.Columns = pixels.shape
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        made.RescaleIntercept, made.RescaleSlope, made.RescaleType = 0, 1, "HU"
        made.WindowCenter, made.WindowWidth = (list(values) for values in zip(*WINDOWS.values(), strict=True))
        made.WindowCenterWidthExplanation = [name.upper() for name in WINDOWS]
        made.LossyImageCompression = "00"
        made.PixelData = pixels.tobytes()
        yield _marked(made, study)


def segmentation(
    masks: Bool[np.ndarray, "segments slices rows columns"],
    labels: Sequence[str],
    numbers: Sequence[int],
    slices: "Sequence[Dataset]",
    study: Study,
    recipe: str,
    series: int,
) -> "Segmentation":
    """A binary SEG of masks that may overlap, one segment for each label; `numbers` of the words choose the colors."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import Segmentation as Seg
    from highdicom.seg import SegmentationTypeValues, SegmentDescription
    from pydicom.sr.coding import Code

    content = hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()
    algorithm = AlgorithmIdentificationSequence(
        name=line(f"{MAKER} {recipe}"), family=Code("123110", "DCM", "Artificial Intelligence"), version=_version()
    )
    described = [
        SegmentDescription(
            segment_number=place,
            segment_label=line(label),
            segmented_property_category=Code("309825002", "SCT", "Spatial and Relational Concept"),
            segmented_property_type=Code("111099", "DCM", "Selected region"),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=uid(study.key, "word", recipe, number),
            tracking_id=line(f"{recipe} {number}"),
            display_color=CIELabColor.from_rgb(*OKABE_ITO[(number - 1) % len(OKABE_ITO)]),
        )
        for place, (label, number) in enumerate(zip(labels, numbers, strict=True), start=1)
    ]
    made = Seg(
        source_images=slices,
        pixel_array=np.ascontiguousarray(np.moveaxis(masks, 0, -1)).astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        content_label="WORDS",
        content_description="The top part of each word's map; no segmentation of anatomy",
        **_series(study, ("seg", recipe, content, *labels), series, f"masks of words, {recipe}"),
    )
    made.BodyPartExamined = BODY_PART
    return _marked(made, study)


def parametric_map(
    values: Float[np.ndarray, "slices rows columns"],
    label: str,
    slices: "Sequence[Dataset]",
    study: Study,
    recipe: str,
    series: int,
) -> "ParametricMap":
    """A float32 Parametric Map scaled to a maximum of 1; its Real World Value Mapping leads back to the true values.

    There is one frame for every slice, in ascending order along the normal.
    """
    from highdicom import VOILUTTransformation
    from highdicom.pm import DerivedPixelContrastValues, RealWorldValueMapping
    from highdicom.pm import ParametricMap as Map
    from pydicom.sr.coding import Code

    scale = float(np.abs(values).max()) or 1.0
    stored = (values / scale).astype(np.float32)
    mapping = RealWorldValueMapping(
        lut_label=line(recipe.upper(), 16),
        lut_explanation=line(f"recipe {recipe}: relative within one recipe"),
        unit=Code("1", "UCUM", "no units"),
        value_range=(float(min(stored.min(), 0.0)), 1.0),
        slope=scale,
        intercept=0.0,
    )
    content = hashlib.sha256(stored.tobytes()).hexdigest()
    made = Map(
        source_images=slices,
        pixel_array=stored,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        derived_pixel_contrast=DerivedPixelContrastValues.NONE,
        content_label="MAP",
        content_description=line(f"{label}: {recipe}"),
        **_series(study, ("map", recipe, content, label, scale), series, f"{label}, map by {recipe}"),
    )
    _ascend(made, directions(study.geometry)[2])
    made.BodyPartExamined = BODY_PART
    return _marked(made, study)


def directions(geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The unit vectors along a row (columns grow), along a column (rows grow), and across the planes."""
    unit = geometry.affine[:3, :3] / geometry.spacing
    return unit[:, 2], unit[:, 1], unit[:, 0]


def _ascend(made: "ParametricMap", normal: Float[np.ndarray, "3"]) -> None:
    frames = list(made.PerFrameFunctionalGroupsSequence)
    height = [np.dot(frame.PlanePositionSequence[0].ImagePositionPatient, normal) for frame in frames]
    order = np.argsort(height)
    pixels = np.frombuffer(made.FloatPixelData, "<f4").reshape(len(frames), -1)
    made.PerFrameFunctionalGroupsSequence = [frames[index] for index in order]
    made.FloatPixelData = pixels[order].tobytes()


def _common(study: Study) -> "Dataset":
    from pydicom.dataset import Dataset, FileMetaDataset

    made = Dataset()
    made.file_meta = FileMetaDataset()
    patient = "SYNTHETIC" if study.synthetic else "UNKNOWN"
    made.PatientName, made.PatientID = f"{patient}^{MAKER.upper()}", f"{MAKER.upper()}-{study.key[:12]}"
    made.PatientBirthDate = made.PatientSex = made.AccessionNumber = made.ReferringPhysicianName = ""
    made.StudyInstanceUID, made.StudyID = uid(study.key, "study"), "1"
    made.StudyDescription = study.title("image from text" if study.synthetic else "words on an image")
    made.StudyDate = made.ContentDate = f"{study.made:%Y%m%d}"
    made.StudyTime = made.ContentTime = f"{study.made:%H%M%S}"
    made.Manufacturer, made.ManufacturerModelName, made.SoftwareVersions = MAKER, MAKER, _version()
    return made


def _series(study: Study, parts: tuple[object, ...], number: int, description: str) -> dict[str, Any]:
    return {
        "series_instance_uid": uid(study.key, "series", *parts),
        "sop_instance_uid": uid(study.key, "instance", *parts),
        "series_number": number,
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": _version(),
        "device_serial_number": "none",
        "series_description": study.title(description),
    }


def _marked(made: Any, study: Study) -> Any:
    """The object with what says that no patient was imaged, in the standard's own attributes, and the comment."""
    made.SpecificCharacterSet = "ISO_IR 192"
    made.BurnedInAnnotation = "NO"
    if study.synthetic:
        made.SyntheticData = "YES"
        made.DerivationDescription = "Made by a text-to-image model, or computed from its attention. Shows no patient."
    if study.comment:
        made.ImageComments = study.comment[:COMMENT]
    return made


def _decimals(values: Sequence[float] | np.ndarray) -> list[Any]:
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


def _version() -> str:
    return version("voxplain")
