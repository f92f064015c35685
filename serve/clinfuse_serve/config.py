"""One Serve config file for a service: what `clinfuse serve` deploys, `serve deploy` takes, and KubeRay's
`serveConfigV2` holds. The model folder stands in `user_config`, so that a new version rolls without a restart.
"""

from __future__ import annotations

import copy
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clinfuse.errors import ConfigError
from clinfuse_serve.limits import Limits
from clinfuse_serve.security import is_loopback, read_token, require_token_beyond_loopback, token_digest

if TYPE_CHECKING:
    from ray.serve import Application

APP = "clinfuse"
IMPORT_PATH = "clinfuse_serve.config:application"
ANYWHERE = "0.0.0.0"  # taken for the address while it is not known, so that a token is asked


class ServiceArgs(BaseModel):
    """`args` of the application in a config file: everything but the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: int = Field(ge=1, le=64, description="members to serve")
    aggregators: int = Field(
        2, ge=1, le=64, description="replicas of the HTTP front; two, so that one may die"
    )
    groups: int = Field(
        1, ge=1, le=64, description="most replicas of each member, added while requests queue"
    )
    token_file: str | None = Field(None, description="file with the token, readable on the cluster")
    token_digest: str | None = Field(None, description="SHA-256 of the token instead of its file")
    examples: str | None = Field(None, description="prepared store with demo cases; default simulated ones")
    study: str | None = Field(None, description="reader study file")
    device: str = Field("cpu", pattern="^(cpu|cuda)$", description="where members run")
    precision: str = Field("float32", pattern="^(float32|bfloat16)$", description="of the members' networks")
    threads: int | None = Field(None, ge=1, description="torch threads per member; default the cores shared")
    batch: int | None = Field(None, ge=1, le=64, description="slices of different requests per batch")
    limits: dict[str, int | float] = Field(
        default_factory=dict, description="of clinfuse_serve.limits.Limits"
    )


def application(values: dict[str, Any]) -> Application:
    """The application graph; Serve calls this with `args` of the config file, fields of `ServiceArgs`.

    Raises:
        ConfigError: others could reach the service and there is no token, or a limit is out of range.
    """
    from clinfuse_serve.members import Settings, build
    from clinfuse_serve.proxy import serve_place

    args = ServiceArgs(**values)
    digest = token_digest(read_token(args.token_file)) if args.token_file else args.token_digest
    place = serve_place()
    host = place.host if place else ANYWHERE
    require_token_beyond_loopback(host, digest)
    settings = Settings(
        app=APP,
        members=args.members,
        threads=args.threads or max(1, (os.cpu_count() or 1) // args.members),
        limits=Limits(**args.limits),  # type: ignore[arg-type]
        secret=secrets.token_bytes(32),
        digest=digest,
        loopback_only=is_loopback(host) and digest is None,
        examples=args.examples,
        study=args.study,
        device=args.device,
        precision=args.precision,
        batch=args.batch or (8 if args.device == "cuda" else 1),
    )
    return build(settings, args.aggregators, args.groups)


def config_for(model: str, args: ServiceArgs, host: str, port: int) -> dict[str, Any]:
    """The config file's content for one model folder."""
    names = ["Aggregator", *(f"Member{k}" for k in range(args.members))]
    return {
        "proxy_location": "HeadOnly" if is_loopback(host) else "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "logging_config": {"log_level": "WARNING", "enable_access_log": False},
                "args": args.model_dump(exclude_defaults=True),
                "deployments": [{"name": name, "user_config": {"model": model}} for name in names],
            }
        ],
    }


def with_model(config: dict[str, Any], model: str) -> dict[str, Any]:
    """The same config with another model version."""
    changed = copy.deepcopy(config)
    for row in changed["applications"][0]["deployments"]:
        row["user_config"] = {"model": model}
    return changed


def with_certificate(config: dict[str, Any], certificate: tuple[str, str]) -> dict[str, Any]:
    """The same config for HTTPS by (certificate file, key file)."""
    files = dict(zip(("ssl_certfile", "ssl_keyfile"), certificate, strict=True))
    return {**config, "http_options": {**config["http_options"], **files}}


def read_config(path: str | Path) -> dict[str, Any]:
    """A config file, checked as far as can be without a cluster.

    Raises:
        ConfigError: not a Serve config file of this application; the message names the field.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        app = next(a for a in config["applications"] if a["import_path"] == IMPORT_PATH)
        args = ServiceArgs(**app["args"])
        versions = {row["name"]: row["user_config"]["model"] for row in app["deployments"]}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("the config file cannot be read", found=type(error).__name__) from error
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError("args in the config file cannot be used", found=found) from error
    except (KeyError, TypeError, StopIteration) as error:
        raise ConfigError(
            "not a config file of this service",
            expected=f"applications with import_path {IMPORT_PATH}, args, and deployments with user_config.model",
            found=f"{type(error).__name__} {error}",
            todo="begin with serve/clinfuse.yaml",
        ) from error
    wanted = ["Aggregator", *(f"Member{k}" for k in range(args.members))]
    if sorted(versions) != sorted(wanted) or len(set(versions.values())) != 1:
        raise ConfigError(
            "the config file does not give every deployment the same model",
            expected=f"user_config.model for {', '.join(wanted)}",
            found=", ".join(f"{name}: {model}" for name, model in sorted(versions.items())),
        )
    return dict(config)
