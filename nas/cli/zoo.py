"""``nas zoo``."""

from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace

from nas.cli.shared import Result, make_parser
from nas.search.zoo.shipped import DEFAULT, DEFAULT_COLOUR, shipped


def parser() -> ArgumentParser:
    return make_parser("List the networks that come with the package; nas denoise --network NAME uses one.")


def perform(options: Namespace) -> Result:
    networks = shipped()
    levels = list(networks[0].psnr)
    titles = "".join(f"{f'sigma {level}':>12}" for level in levels)
    print(f"{'':<12}{'parameters':>12}{'MACs/pixel':>12}{'noise':>10}{titles}   (PSNR in dB)")
    for each in networks:
        scores = "".join(f"{each.psnr[level]:>12.2f}" for level in levels)
        noise = f"{each.sigma[0]:g} to {each.sigma[1]:g}"
        mark = {DEFAULT: "; default", DEFAULT_COLOUR: "; default for colours"}.get(each.name, "")
        print(f"{each.name:<12}{each.params:>12,}{each.flops:>12,.0f}{noise:>10}{scores}   {each.test}{mark}")
    return {"default": DEFAULT, "default_colour": DEFAULT_COLOUR, "networks": [asdict(each) for each in networks]}
