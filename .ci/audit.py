"""Known vulnerabilities of the locked packages, by pip-audit in an environment of its own.

Exit code 1 where there are any. Where pip-audit can't be had or no advisory service answers,
nothing is known: that is said, and the exit code is 0. Further arguments go to pip-audit, such as
`--ignore-vuln ID` for what was reviewed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
TOOL = "pip-audit==2.10.1"


def verdict(report: str, errors: str = "") -> tuple[int, str]:
    """Exit code and text of what pip-audit wrote."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = errors.strip().splitlines()
        return 0, f"NOT AUDITED: pip-audit gave no report ({why[-1] if why else 'no reason'})"
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return 0, f"NOT AUDITED: no advisory service knows any of {len(packages)} packages"
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for package in known
        for vulnerability in package["vulns"]
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    told = [*found, f"{len(known)} packages audited, {len(found)} vulnerabilities known"]
    if unknown:
        told.append(f"not audited: {', '.join(unknown)}")
    return int(bool(found)), "\n".join(told)


def main() -> int:
    uv = Path(sys.executable).parent / "uv"
    try:
        done = subprocess.run(
            [uv, "tool", "run", "--quiet", TOOL, "--disable-pip", "--no-deps", "--format", "json",
             "--progress-spinner", "off", "--requirement", LOCK, *sys.argv[1:]],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        code, text = verdict(done.stdout, done.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        code, text = verdict("", str(error))
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
