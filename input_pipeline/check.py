"""Compares a data folder with the published dataset: identities, pictures, cameras and captions of every split.

python -m input_pipeline.check --dataset=rgbnt201 --data_dir=data/RGBNT201 [--deep] [--json]

Names the first file that is absent or cannot be read; --deep also decodes every picture. Exit codes: 0 no problem
found, 2 bad arguments, 3 problems found: a file is absent or broken, or the counts differ from the published ones.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from tqdm import tqdm

from input_pipeline import datasets
from input_pipeline.datasets import synthetic
from input_pipeline.reading import images
from input_pipeline.records import REPHRASED, Counts, Records
from jax_mmreid.batch import MODALITIES
from jax_mmreid.errors import ConfigError, DataError


def check(
    dataset: str,
    data_dir: str,
    *,
    modalities: Sequence[str] = (),
    allow_missing_files: bool = False,
    own: bool = False,
    deep: bool = False,
    limit: int = 10,
    options: dict | None = None,
) -> dict:
    """The report on a dataset, ready for JSON.

    dataset, data_dir, modalities    the arguments; without `modalities` all that the dataset has
    ok        whether no problem was found
    problem   the first absent or broken file that reading the dataset found, or null; counts are then of the rest
    splits    {name: {identities, rows, images, cameras: [..], missing: {modality: rows}, captions: {modality: rows},
              counts, expected}}
              missing counts the rows without a picture, captions those with a caption, which is 0 for a modality
              without captions. counts is "equal" or "differs", or "unknown" without published counts. expected is
              null then, else {identities, cameras, rows}, with 0 and [] for what is not published. The expected
              counts of a manifest are those of its table, of drawn data those of its options.
    deep      null, or {files, broken, first: [..]}: files decoded, how many are broken, messages of the first ones

    `own` says that the data are not the published ones, so that no counts are expected. `limit` is the length of
    `first`. `options` are keyword arguments of the dataset's `load`. Raises ConfigError for a dataset, modality or
    option that does not exist.
    """
    options = options or {}
    report = {"dataset": dataset, "data_dir": data_dir, "modalities": [], "ok": False, "problem": None}
    report |= {"splits": {}, "deep": None}
    splits, published = {}, {}
    try:
        if dataset == "synthetic" and not os.path.exists(os.path.join(data_dir, synthetic.ARGUMENTS)):
            raise DataError(f"synthetic: {data_dir!r} holds no drawn pictures yet; training draws them on first use")
        modalities = tuple(modalities or modalities_of(dataset, data_dir, options))
        given = dict(data_dir=data_dir, modalities=modalities)
        published = datasets.find(dataset, "counts", options, **given)()
        report["modalities"] = list(modalities)
        load = datasets.find(dataset, "load", options, **given, allow_missing_files=True)
        if not allow_missing_files:
            try:
                splits = load(allow_missing_files=False)
            except DataError as error:
                report["problem"] = str(error)
        splits = splits or load()
    except (DataError, OSError) as error:
        report["problem"] = report["problem"] or str(error)
    report["splits"] = {name: _split(records, None if own else published.get(name)) for name, records in splits.items()}
    report["deep"] = _decode(splits, limit) if deep and splits else None
    differs = any(split["counts"] == "differs" for split in report["splits"].values())
    broken = bool(report["deep"] and report["deep"]["broken"])
    report["ok"] = report["problem"] is None and not differs and not broken
    return report


def modalities_of(dataset: str, data_dir: str, options: dict) -> list[str]:
    """The modalities that the dataset accepts; all of them for a table that cannot be read."""
    found, refusal = [], None
    for name in MODALITIES:
        try:
            datasets.find(dataset, "counts", options, data_dir=data_dir, modalities=(name,))()
        except ConfigError as error:
            refusal = error
            continue
        except DataError:
            pass  # a split lacks this modality, or nothing can be read; loading reports it
        found.append(name)
    if not found:
        raise refusal
    return found


def _split(records: Records, published: Counts | None) -> dict:
    has_file = records.has_file()
    found = {
        "identities": len(set(records.pid.tolist())),
        "rows": len(records),
        "images": int(has_file.sum()),
        "cameras": sorted(set(records.camid.tolist())),
        "missing": {m: int(n) for m, n in zip(records.paths, (~has_file).sum(axis=0))},
        "captions": _captions(records),
    }
    if published is None:
        return found | {"counts": "unknown", "expected": None}
    expected = published._asdict() | {"cameras": list(published.cameras)}
    differs = any(value and value != found[key] for key, value in expected.items())  # 0 and () are not published
    return found | {"counts": "differs" if differs else "equal", "expected": expected}


def _captions(records: Records) -> dict[str, int]:
    """Rows with a caption, by the modality that it describes."""
    columns = {m: column for m, column in records.captions.items() if not m.endswith(REPHRASED)}
    return {m: int((columns[m] != "").sum()) if m in columns else 0 for m in {**records.paths, **columns}}


def _decode(splits: dict[str, Records], limit: int) -> dict:
    """Decodes every file once and cuts all pictures that rows take from it."""
    files = {}
    for records in splits.values():
        for m, column in records.paths.items():
            for row, path in enumerate(column):
                if path:
                    files.setdefault(records.path(m, row), set()).add(records.part(m, row))
    wrong = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(_fault, files, files.values()), total=len(files), disable=None, leave=False)
        wrong = [fault for fault in bar if fault]
    return {"files": len(files), "broken": len(wrong), "first": wrong[:limit]}


def _fault(path: str, parts: set[int | None]) -> str | None:
    try:
        pixels = images.read(path)
        for part in parts:
            images.fit(pixels, path, (1, 1), Image.Resampling.NEAREST, part)
    except DataError as error:
        return str(error)
    return None


def text(report: dict) -> str:
    """The report as lines of text."""
    lines = [f"{report['dataset']} in {report['data_dir']}: {', '.join(report['modalities']) or 'not readable'}"]
    for name, split in report["splits"].items():
        missing = ", ".join(f"{n} {m}" for m, n in split["missing"].items() if n) or "nothing"
        numbers = f"{split['identities']} identities, {split['rows']} rows, {split['images']} images"
        lines.append(f"{name}: {numbers}, cameras {_few(split['cameras'])}; missing: {missing}")
        if any(split["captions"].values()):
            lines.append(f"{name}: rows with captions: {', '.join(f'{m} {n}' for m, n in split['captions'].items())}")
        lines.append(f"{name}: {_verdict(split)}")
    if report["problem"]:
        lines.append(f"problem: {report['problem']}")
    if deep := report["deep"]:
        lines += [f"broken: {fault}" for fault in deep["first"]]
        lines.append(f"decoded {deep['files']} files, {deep['broken']} of them broken")
    lines.append("no problem found" if report["ok"] else f"problems found: {', '.join(_reasons(report))}")
    return "\n".join(lines)


def _verdict(split: dict) -> str:
    if split["expected"] is None:
        return "no published count"
    published = {key: value for key, value in split["expected"].items() if value}
    if split["counts"] == "equal":
        return f"as expected: {', '.join(published)}"
    wrong = [f"{key} {_few(split[key])}, expected {_few(x)}" for key, x in published.items() if x != split[key]]
    return f"differs: {'; '.join(wrong)}"


def _reasons(report: dict) -> list[str]:
    differ = [name for name, split in report["splits"].items() if split["counts"] == "differs"]
    reasons = ["a file is absent or cannot be read"] if report["problem"] else []
    reasons += [f"counts differ in {', '.join(differ)} (add --own if these are your own data)"] if differ else []
    return reasons + (
        [f"{report['deep']['broken']} broken files"] if report["deep"] and report["deep"]["broken"] else []
    )


def _few(value: int | list[int]) -> str:
    numbers = value if isinstance(value, list) else [value]
    return " ".join(map(str, numbers[:9])) + (f" ... ({len(numbers)} in all)" if len(numbers) > 9 else "")


def option(item: str) -> tuple[str, object]:
    """key=value; the value is read as JSON, or else as a string."""
    key, sep, value = item.partition("=")
    if not sep:
        raise argparse.ArgumentTypeError(f"{item!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.check", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help=f"one of: {', '.join(datasets.names())}")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--modalities", default="", help="joined by '/'; default: all that the dataset has")
    parser.add_argument("--allow_missing_files", action="store_true", help="count absent pictures, report no problem")
    parser.add_argument("--own", action="store_true", help="your own data in this layout: expect no counts")
    parser.add_argument("--deep", action="store_true", help="decode every picture")
    parser.add_argument("--limit", type=int, default=10, help="how many broken files to name")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--option", action="append", default=[], type=option, metavar="KEY=VALUE", help="of the dataset"
    )
    arguments = vars(parser.parse_args(argv))
    as_json, options = arguments.pop("json"), dict(arguments.pop("option"))
    modalities = tuple(filter(None, arguments.pop("modalities").split("/")))
    try:
        report = check(modalities=modalities, options=options, **arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1) if as_json else text(report))
    return 0 if report["ok"] else 3


if __name__ == "__main__":
    sys.exit(main())
