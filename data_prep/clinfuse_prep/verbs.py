"""The verbs of this room: cohort, prep, inspect, masks. Only arguments here; the work is imported when asked for."""

from __future__ import annotations

import argparse
from typing import Any

from clinfuse.verbs import Verb
from clinfuse_prep.cohort.verb import COHORT

__all__ = ["COHORT", "INSPECT", "MASKS", "PREP"]


def _prep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder of images (or a table of paths)")
    parser.add_argument("--out", required=True, metavar="D.zarr", help="dataset to write (path or URL)")
    parser.add_argument(
        "--layout",
        default="auto",
        help="auto, cohort, pairs, synthrad, bids, dicom, table or nifti-pair (default auto)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="prepare one case aside, say time and space for all, write nothing",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep all splits, and finished cases of the same files and choices; prepare the others",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove the cases that are there")
    parser.add_argument(
        "--register",
        nargs="?",
        const="rigid",
        default="none",
        choices=("none", "rigid", "affine"),
        help="move the companion onto the anatomy image (rigid if no kind is named)",
    )
    parser.add_argument(
        "--masks",
        default="auto",
        metavar="auto|DIR",
        help="auto, or a folder <case's name at the source>/{brain,bone,lesion}.nii.gz whose masks win over "
        "automatic ones",
    )
    parser.add_argument("--brain", default="auto", help="auto, ct, mr, deepbet, totalsegmentator or none")
    parser.add_argument(
        "--no-compare",
        action="store_true",
        help="do not check CT brain masks against deepbet where it is installed",
    )
    parser.add_argument(
        "--split",
        default="0.65,0.15,0.2",
        metavar="A,B,C|FILE",
        help="shares of train, val, test by patient; or a CSV with columns patient,split",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument(
        "--spacing", metavar="D,H,W", help="common grid in mm (default: the anatomy image's grid)"
    )
    parser.add_argument(
        "--slice-spacing",
        default="5,1,1",
        metavar="D,H,W",
        help="mm assumed for picture slices (default 5,1,1)",
    )
    parser.add_argument(
        "--ct-window",
        nargs=2,
        type=float,
        default=(-100.0, 1700.0),
        metavar=("LOW", "HIGH"),
        help="HU that become 0 and 1 (default -100 1700)",
    )
    parser.add_argument("--n4", action="store_true", help="correct the MR bias field")
    parser.add_argument(
        "--deface",
        action="store_true",
        help="remove the face from images and masks (off by default for training)",
    )
    parser.add_argument("--dtype", default="float32", help="float32 or float16 (default float32)")
    parser.add_argument(
        "--key", metavar="DIR", help="folder of pseudonym key and link table (default: D.zarr.key)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="Ray workers here; 0: in this process (default: by size)",
    )
    parser.add_argument(
        "--cpus-per-case",
        type=float,
        default=1.0,
        metavar="C",
        help="CPUs a case takes on Ray; less where storage is slow (%(default)s)",
    )


def _check_prep(arguments: argparse.Namespace) -> None:
    from clinfuse_prep.prep_verb import check_asked

    check_asked(arguments)


def _prep(arguments: argparse.Namespace) -> dict[str, Any]:
    from clinfuse_prep.prep_verb import prep

    return prep(arguments)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="D.zarr", help="dataset made by clinfuse prep")
    parser.add_argument(
        "--out", metavar="DIR", help="where to write sheet and page (default: D.zarr.inspect)"
    )
    parser.add_argument("--cases", metavar="ID,ID", help="only these cases on sheet and page")
    parser.add_argument("--no-pictures", action="store_true", help="the table only")


def _inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    from clinfuse_prep.inspect_verb import inspect

    return inspect(arguments)


def _masks_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=("export", "import"), help="write masks as NIfTI, or take them back"
    )
    parser.add_argument("data", metavar="D.zarr", help="dataset made by clinfuse prep")
    parser.add_argument(
        "--dir", required=True, metavar="DIR", help="folder of <case id>/{brain,bone,lesion}.nii.gz"
    )
    parser.add_argument("--cases", metavar="ID,ID", help="only these cases")
    parser.add_argument(
        "--images", action="store_true", help="export the images too, to see the masks on them"
    )
    parser.add_argument(
        "--no-deface", action="store_true", help="export masks and images with the face, to correct it, too"
    )


def _masks(arguments: argparse.Namespace) -> dict[str, Any]:
    from clinfuse_prep.masks_verb import masks

    return masks(arguments)


PREP = Verb(
    name="prep",
    help="Turn a folder of images into a dataset: checked, aligned, masked, split by patient.",
    add_arguments=_prep_arguments,
    run=_prep,
    check=_check_prep,
)
INSPECT = Verb(
    name="inspect",
    help="Show what is in a dataset: table, contact sheet and page with ROI outlines.",
    add_arguments=_inspect_arguments,
    run=_inspect,
)
MASKS = Verb(
    name="masks",
    help="Export masks for correction in a viewer, and import the corrected ones.",
    add_arguments=_masks_arguments,
    run=_masks,
)
