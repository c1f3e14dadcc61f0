"""Says which files below ``src`` are missing in a wheel: ``check_wheel.py WHEEL``. Run by ``.ci/run``."""

import subprocess
import sys
import zipfile


def main(wheel: str) -> int:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "src"], check=True, capture_output=True, text=True
    ).stdout
    wanted = {name.removeprefix("src/") for name in tracked.split("\0") if name}
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    missing = sorted(wanted - packed)
    for name in missing:
        print(f"not in the wheel: {name}")
    print(f"{len(wanted) - len(missing)} of {len(wanted)} files are in the wheel")
    return 1 if missing or not wanted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
