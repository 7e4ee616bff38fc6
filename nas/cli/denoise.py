"""``nas denoise``."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from nas.cli.shared import Result, add_choice, check_free, load_chosen, make_run_parser
from nas.search.config import TASKS
from nas.search.data.images import read_picture, write_picture
from nas.search.run import Run
from nas.search.tasks.restoration import Restoration
from nas.search.tasks.use import beside, denoise_pixels


def parser() -> ArgumentParser:
    parser = make_run_parser("Clean a picture with the retrained network (the compact one if it was not retrained).")
    parser.add_argument("picture", type=Path, help="any grey or colour picture")
    parser.add_argument("-o", "--out", type=Path, required=True, help="file to write")
    add_choice(parser)
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    return parser


def perform(options: Namespace) -> Result:
    run = Run.open(options.run)
    if not issubclass(TASKS.find(run.config.task), Restoration):
        raise ValueError(
            f"the task of {run.folder} is {run.config.task}; denoise is for networks that restore pictures"
        )
    folder, net = load_chosen(run, options)
    comparison = options.out.with_name(f"{options.out.stem}-before-after.png")
    for path in (options.out, comparison):
        if path.resolve() == options.picture.resolve():
            raise ValueError(f"{path} is the picture to be cleaned; choose another -o")
        check_free(path, options.force)
    pixels = read_picture(options.picture)
    cleaned = denoise_pixels(net, pixels)
    both = beside([pixels, cleaned])
    write_picture(options.out, cleaned)
    write_picture(comparison, both)
    print(f"cleaned {options.picture} with the network in {folder}; wrote {options.out} and {comparison}")
    return {"network": str(folder), "files": [str(options.out), str(comparison)]}
