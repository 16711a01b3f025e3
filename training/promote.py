"""Show what the gate said of challenger and champion, and override it, on the record."""

from __future__ import annotations

from features.config import Config
from features.errors import ConfigError
from training.tracking import (
    CHALLENGER,
    CHAMPION,
    Version,
    connect,
    find_version,
    load_version,
    set_champion,
)


def promote(
    config: Config,
    path: str,
    *,
    by: str | None = None,
    reason: str | None = None,
    version: str | None = None,
    rollback: bool = False,
) -> str:
    """What is shown. With `by` and `reason`, a version (default: the challenger; with `rollback`,
    what the champion took the place of) becomes the champion, after its bundle was verified; name,
    reason and time stay on it as tags.

    Raises ConfigError for a version that is not there and for a name without a reason, and
    BundleError for a damaged bundle.
    """
    champion, challenger = find_version(config, CHAMPION), find_version(config, CHALLENGER)
    if challenger is None and champion is None:
        raise ConfigError(
            "name",
            expected=f"a registered model {config.name!r}",
            found="none",
            remedy=f"Train one: python -m training train --config {path}.",
        )
    if by is None and reason is None and version is None and not rollback:
        return "\n".join(_shown(config, path, champion, challenger))
    by, reason = (by or "").strip(), (reason or "").strip()
    if not by or not reason:
        raise ConfigError(
            "--by and --reason",
            expected="a name and a reason, which are recorded",
            found=f"--by {by!r} --reason {reason!r}",
            remedy="Say who overrides the gate, and why.",
        )
    wanted = _wanted(config, champion, challenger, version, rollback)
    if champion is not None and wanted.version == champion.version:
        return f"Version {wanted.version} of {config.name} is the champion already."
    load_version(config, wanted.version)
    set_champion(connect(config), config, wanted.version, by, reason)
    over = "" if champion is None else f" in place of version {champion.version}"
    return (
        f"Champion: {config.name} version {wanted.version}, policy "
        f"{wanted.tags.get('policy', 'unknown')}{over}.\nRecorded: by {by}: {reason}"
    )


def _wanted(
    config: Config,
    champion: Version | None,
    challenger: Version | None,
    version: str | None,
    rollback: bool,
) -> Version:
    if rollback:
        if version is not None:
            raise ConfigError(
                "--rollback",
                expected="--rollback or --version",
                found="both",
                remedy="Leave one of them out.",
            )
        version = "" if champion is None else champion.tags.get("promoted.over", "")
        if not version:
            raise ConfigError(
                "--rollback",
                expected="a champion that took the place of another",
                found="none",
                remedy="Name the version: --version N.",
            )
    found = challenger if version is None else find_version(config, version)
    if found is None or (version is not None and not version.isdigit()):
        raise ConfigError(
            "--version",
            expected=f"the number of a version of {config.name}",
            found=repr(version),
            remedy="`make mlflow` lists them under Models.",
        )
    return found


def _shown(
    config: Config, path: str, champion: Version | None, challenger: Version | None
) -> list[str]:
    out = [f"Model {config.name}"]
    for alias, found in ((CHAMPION, champion), (CHALLENGER, challenger)):
        if found is None:
            out.append(f"  {alias:<11}none")
            continue
        policy = found.tags.get("policy", "unknown")
        same = champion is not None and found.version == champion.version and alias != CHAMPION
        out.append(
            f"  {alias:<11}version {found.version}, {policy}, trained "
            f"{found.registered_at:%Y-%m-%d %H:%M} UTC" + (", the champion itself" if same else "")
        )
        if "promoted.by" in found.tags:
            out.append(
                f"    promoted by {found.tags['promoted.by']} at {found.tags['promoted.at']}: "
                f"{found.tags['promoted.reason']}"
            )
        if not same:
            out += _verdict(found)
    if challenger is not None and (champion is None or champion.version != challenger.version):
        out += [
            "",
            "To make the challenger champion all the same:",
            f"  python -m training promote --config {path} --by NAME --reason TEXT",
        ]
    return out


def _verdict(found: Version) -> list[str]:
    """The gate's steps for the version's own policy."""
    policy = found.tags.get("policy")
    steps = [s for s in found.gate.get("steps", []) if s["candidate"] == policy]
    if not steps:
        return ["    no verdict of the gate is kept with it"]
    failed = sum(s["outcome"] == "fail" for s in steps)
    told = "passed" if not failed else f"{failed} of {len(steps)} steps failed"
    return [
        f"    gate: {told}",
        *(f"      {s['number']} {s['outcome']:<8} {s['test']}: {s['text']}" for s in steps),
    ]
