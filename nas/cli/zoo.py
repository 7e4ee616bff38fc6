"""``nas zoo``."""

from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace

from nas.cli.shared import Result, make_parser
from nas.search.zoo.shipped import DEFAULT, shipped


def parser() -> ArgumentParser:
    return make_parser("List the networks that come with the package; nas denoise --network NAME uses one.")


def perform(options: Namespace) -> Result:
    networks = shipped()
    levels = list(networks[0].psnr)
    titles = "".join(f"{f'sigma {level}':>12}" for level in levels)
    print(f"{'':<12}{'parameters':>12}{'MACs/pixel':>12}{'noise':>10}{titles}   (PSNR in dB, Set12)")
    for each in networks:
        scores = "".join(f"{each.psnr[level]:>12.2f}" for level in levels)
        noise = f"{each.sigma[0]:g} to {each.sigma[1]:g}"
        mark = "   default" if each.name == DEFAULT else ""
        print(f"{each.name:<12}{each.params:>12,}{each.flops:>12,.0f}{noise:>10}{scores}{mark}")
    return {"default": DEFAULT, "networks": [asdict(each) for each in networks]}
