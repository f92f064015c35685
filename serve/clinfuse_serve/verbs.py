"""The verbs `clinfuse serve` and `clinfuse fuse`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from clinfuse.errors import ConfigError
from clinfuse.verbs import Verb, parse_settings

if TYPE_CHECKING:
    from clinfuse_serve.deploy import ServeHandle

STORED = ("examples", "study")
FIELDS = ("members", "aggregators", "groups", "device", "precision", "threads", "batch", *STORED)
LIMITS = {"queue": "queue", "max_mb": "body_bytes", "max_voxels": "voxels"}
IN_FILE = {
    **{name: f"http_options.{name}" for name in ("host", "port")},
    **{name: f"args.{name}" for name in ("token_file", *FIELDS)},
    **{name: f"args.limits.{limit}" for name, limit in LIMITS.items()},
}
"""Flags of `clinfuse serve` that say what a config file says, and where it says so."""
PRECISIONS = ("float32", "bfloat16")
MASKS = {
    "brain": "found automatically",
    "bone": "found automatically; with SPECT or PET it is the tracer's uptake",
    "lesion": "none, and then no lesion term",
}


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="model folder, or a config file (.yaml); without it the released model"
    )
    parser.add_argument(
        "config", nargs="?", help="after the word `deploy`: config file to deploy on a running cluster"
    )
    parser.add_argument("--members", type=int, help="how many of the model's members (default all)")
    parser.add_argument("--host", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, help="0 picks a free one (default 8000)")
    parser.add_argument("--token-file", help="text file with the token that clients must send")
    parser.add_argument("--aggregators", type=int, help="replicas of the HTTP front (default 2)")
    parser.add_argument(
        "--groups", type=int, help="most replicas of each member, added while requests queue (default 1)"
    )
    parser.add_argument("--examples", help="prepared store (.zarr) whose test cases the page offers")
    parser.add_argument("--study", help="reader study file (.yaml): the page /study")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where members run (default cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the networks (default float32)")
    parser.add_argument("--threads", type=int, help="torch threads per member")
    parser.add_argument(
        "--batch", type=int, help="slices of different requests per batch (default 8 on cuda, else 1)"
    )
    parser.add_argument("--queue", type=int, help="waiting requests per front replica (default 16)")
    parser.add_argument("--max-mb", type=mebibytes, help="largest upload in MiB (default 256)")
    parser.add_argument("--max-voxels", type=int, help="largest volume (default 64 Mi voxels)")
    parser.add_argument(
        "--certificate", nargs=2, metavar=("CERT", "KEY"), help="files for HTTPS, with a config file, too"
    )


def mebibytes(text: str) -> int:
    """A number of MiB in bytes."""
    return int(text) << 20


def _serve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve until interrupted; `deploy FILE` leaves the service to the cluster and returns."""
    from clinfuse import RESEARCH_USE
    from clinfuse.console import say
    from clinfuse_serve.deploy import deploy

    if arguments.model == "deploy":
        _need_cluster(arguments)
        return {"result": deploy(file_config(arguments.config, arguments)).url, "served": True}
    if arguments.config is not None:
        raise ConfigError("one model folder or config file at a time", found=arguments.config)
    if str(arguments.model or "").endswith((".yaml", ".yml")):
        handle = deploy(file_config(arguments.model, arguments))
    else:
        handle = _start(arguments)
    if arguments.model:
        from clinfuse_platform.lineage import note_use

        note_use(arguments.model, "serve", handle.url, {"members": arguments.members})
    with handle:
        say(f"serving at [bold]{handle.url}[/bold]  (Ctrl-C stops)\n{RESEARCH_USE}")
        sys.stdout.flush()
        wait_for_signal()
    return {"result": handle.url, "served": True}


def file_config(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The config of a file, with the certificate that was given beside it.

    Raises:
        ConfigError: the file or the certificate cannot be used, or a flag says what the file is to say.
    """
    from clinfuse_serve.config import read_config, with_certificate

    if given := [name for name in IN_FILE if getattr(arguments, name) is not None]:
        raise ConfigError(
            "a config file is deployed as it is",
            expected="of all flags of the service only --certificate",
            found=", ".join(f"--{name.replace('_', '-')}" for name in given),
            todo=f"leave them out and set in the file: {', '.join(IN_FILE[name] for name in given)}",
        )
    config, certificate = read_config(path), _certificate(arguments.certificate)
    return with_certificate(config, certificate) if certificate else config


def _certificate(names: list[str] | None) -> tuple[str, str] | None:
    if names is None:
        return None
    for name in names:
        if not Path(name).is_file():
            raise ConfigError("the certificate cannot be read", expected="two PEM files", found=f"no {name}")
    certificate, key = (str(Path(name).resolve()) for name in names)
    return certificate, key


def _need_cluster(arguments: argparse.Namespace) -> None:
    if arguments.config is None:
        raise ConfigError("`serve deploy` deploys a file", expected="clinfuse serve deploy FILE.yaml")
    if not (arguments.address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            "`serve deploy` needs a cluster that stays",
            expected="--address HOST:PORT or auto",
            found="no address",
            todo="for a service on this machine: clinfuse serve FILE.yaml",
        )


def _start(arguments: argparse.Namespace) -> ServeHandle:
    from clinfuse_serve.deploy import absolute, start
    from clinfuse_serve.fuse import released_model
    from clinfuse_serve.security import read_token

    given = {name: value for name in IN_FILE if (value := getattr(arguments, name)) is not None}
    options = {name: given[name] for name in ("host", "port", *FIELDS) if name in given}
    options |= {name: absolute(given[name]) for name in STORED if name in given}
    return start(
        arguments.model or released_model(),
        token=read_token(given["token_file"]) if "token_file" in given else None,
        certificate=_certificate(arguments.certificate),
        limits={LIMITS[name]: value for name, value in given.items() if name in LIMITS},
        **options,
    )


def wait_for_signal() -> None:
    """Block until SIGINT, SIGTERM or SIGHUP; the handlers that were there come back afterwards."""
    stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        while not stop.wait(0.5):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fuse_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--anatomy", required=True, type=Path, help="MRI: NIfTI, DICOM folder or PNG slice")
    parser.add_argument("--companion", required=True, type=Path, help="CT, SPECT or PET, of the same kinds")
    parser.add_argument(
        "--companion-kind",
        choices=("ct", "spect", "pet"),
        help="what the companion is (default: told from its values)",
    )
    for roi, default in MASKS.items():
        parser.add_argument(f"--{roi}", type=Path, metavar="MASK", help=f"{roi} mask (default: {default})")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model", help="model folder; without it the released model")
    where.add_argument("--url", help="fuse by this service instead of here")
    parser.add_argument("--token-file", help="with --url: the service's token (or CLINFUSE_TOKEN)")
    parser.add_argument("--authority", help="with --url https://…: file of the certificate to trust")
    parser.add_argument("--preset", default="balanced", help="clinical preset (default balanced)")
    parser.add_argument("--presets-file", type=Path, metavar="F", help="YAML file with presets of your own")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a preset's value, e.g. beta=2",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the model's)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same image (default 0)")
    parser.add_argument("--members", type=int, help="how many members to ask (default all)")
    parser.add_argument("--samples", type=int, default=1, help="noise draws per member (default 1)")
    parser.add_argument("--jitters", type=int, default=0, help="draws with the companion warped (default 0)")
    parser.add_argument(
        "--format",
        default="auto",
        choices=("auto", "nifti", "png", "dicom"),
        help="of what is written (auto: PNG for a PNG slice, else NIfTI)",
    )
    parser.add_argument(
        "--case-id", default="case", help="pseudonym for file names (letters, digits); not with --url"
    )
    parser.add_argument(
        "--register",
        default="none",
        choices=("none", "rigid", "affine"),
        help="move the companion onto the anatomy image first, for pairs more than a few mm apart (default none)",
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help="slices that a 3D model takes at once, if memory is short"
    )
    parser.add_argument(
        "--guided",
        action="store_true",
        help="guide a student, too: slower, its lesion terms need --lesion",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default cpu)")
    saves = "of the networks: bfloat16 saves time and memory, F differs by 0.01 at most, guided by more"
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help=saves)


def _fuse(arguments: argparse.Namespace) -> dict[str, Any]:
    from clinfuse_prep.findings import Finding

    from clinfuse import RESEARCH_USE
    from clinfuse.console import say, step
    from clinfuse_serve.fuse import FuseJob, fuse_here, fuse_there
    from clinfuse_serve.security import read_token

    job = FuseJob(
        anatomy=arguments.anatomy,
        companion=arguments.companion,
        out=arguments.out,
        masks={
            roi: getattr(arguments, roi) for roi in ("brain", "bone", "lesion") if getattr(arguments, roi)
        },
        preset=arguments.preset,
        presets_file=arguments.presets_file,
        weights=parse_settings(arguments.set),
        steps=arguments.steps,
        seed=arguments.seed,
        members=arguments.members,
        samples=arguments.samples,
        jitters=arguments.jitters,
        image_format=arguments.format,
        case_id=arguments.case_id,
        companion_kind=arguments.companion_kind,
        register=arguments.register,
        window=arguments.window,
        guided=arguments.guided,
        precision=arguments.precision,
    )
    with step(f"Fusing with preset {job.preset}"):
        if arguments.url:
            token = read_token(arguments.token_file) if arguments.token_file else None
            done = fuse_there(job, arguments.url, token, arguments.authority)
        else:
            done = fuse_here(job, arguments.model, arguments.device)
    for finding in done["findings"]:
        Finding.from_dict(finding).tell()
    if done["info"].get("degraded"):
        say("  [yellow]degraded: fewer members answered than were asked; see the sidecar[/yellow]")
    say(RESEARCH_USE)
    files = {key: str(path) for key, path in done["files"].items()}
    return {"result": files["fused"], "files": files, "info": done["info"]}


SERVE = Verb(
    name="serve",
    help="Serve a model over HTTP with its web page, on Ray Serve, until Ctrl-C.",
    add_arguments=_serve_arguments,
    run=_serve,
    needs_ray=True,
)
FUSE = Verb(
    name="fuse",
    help="Fuse one pair (NIfTI, DICOM folder or PNG slice) here or by a service.",
    add_arguments=_fuse_arguments,
    run=_fuse,
)
