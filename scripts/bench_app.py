"""How long a visitor of the app waits for the first picture, from the click until it is shown.

    python scripts/bench_app.py --output app.json

The app is started over the bundled base and opened in a headless Chromium on the same machine. The
form is left as it comes: one click paints. The first picture of a server just started is counted
apart; `median_s` is of pages opened one after another.
"""

import argparse
import json
from pathlib import Path

from sdatoms.bench.app import measure_app
from sdatoms.storage import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3, help="pages after the first")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    args = parser.parse_args()
    text = json.dumps(measure_app(args.times, args.chromium), indent=2)
    print(text)
    if args.output:
        write_whole(args.output, (text + "\n").encode())


if __name__ == "__main__":
    main()
