"""Bundles: one file with source, patches and toolchain, made where there is a network and used where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, bundle_key, common, plain_source, verb

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console

_PATH = click.Path(path_type=Path)


def opened(console: Console, settings: Settings, options: dict[str, Any], *, unpack: bool = True) -> Settings:
    """Check and unpack the bundle of a verb's options, when there is one, before anything else is done.

    Returns the settings with the bundle's toolchain, and puts what was opened in the file's place. Without unpack
    nothing is written: enough for a plan.
    """
    from kwdb_build.upgrade.bundling import settings_with

    file: Path | None = options.get("bundle")
    if file is None:
        return settings
    from kwdb_build.source.bundle import Opened, check_bundle, open_bundle

    key = settings.bundle_key
    with console.step(1, 1, f"check the bundle {file.name}"):
        if unpack:
            found = open_bundle(file.absolute(), home=settings.home, key=key, progress=console)
            settings = settings_with(settings, found)
        else:
            checked = check_bundle(file.absolute(), key=key, progress=console)
            found = Opened(directory=file.absolute(), contents=checked.contents)
        console.update(f"{found.contents.source.version}, whole{', signed' if key else ''}")
    options["bundle"] = found
    return settings


@click.group()
def bundle() -> None:
    """Bundles: everything that a build needs in one file, for machines without network."""


@bundle.command("create")
@click.argument("what", required=False, default="")
@click.option("--ref", default="", help="The reference (or path) to bundle, instead of the argument.")
@click.option("--output", "-o", type=_PATH, required=True, metavar="FILE",
              help="The bundle, such as V3.2.1.kwdb-bundle.")
@click.option("--sign-list", type=_PATH, metavar="KEY", help="Sign the list of contents with this ssh key.")
@click.option("--no-image", is_flag=True, help="Leave the build image out: the other machine has it.")
@plain_source
@building
@common
@verb
def bundle_create(
    console: Console, settings: Settings, *, what: str, ref: str, output: Path, sign_list: Path | None, no_image: bool,
    **options: Any,
) -> int:
    """Put the source of a reference, its submodules, patches and toolchain with its build image into FILE."""
    from kwdb_build.cli.building import make_workshop
    from kwdb_build.cli.source import chosen
    from kwdb_build.errors import UsageError
    from kwdb_build.files import human_bytes
    from kwdb_build.upgrade.bundling import create

    if what and ref:
        raise UsageError(f"two references: {what} and --ref {ref}", hint="give one of them")
    name, choice = chosen(settings, what or ref, options)
    made = create(
        make_workshop(console, settings), settings, console, ref=name, choice=choice, target=output.absolute(),
        sign=sign_list, image=not no_image,
    )
    if console.as_json:
        console.data({"bundle": output.absolute(), "digest": made.digest, "contents": made.contents})
        return 0
    console.text(f"{output.absolute()}  {human_bytes(output.stat().st_size)}\ncontents sha256 {made.digest}")
    return 0


@bundle.command("show")
@click.argument("file", type=_PATH)
@bundle_key
@common
@verb
def bundle_show(console: Console, settings: Settings, *, file: Path, **_: Any) -> int:
    """Show what a bundle holds, after checking it."""
    from kwdb_build.source.bundle import words

    checked = _check(console, settings, file)
    if console.as_json:
        console.data({"bundle": checked})
        return 0
    rows = [*words(checked.contents), ("signature", _signature(checked)), ("contents sha256", checked.digest)]
    console.table("", ("", ""), rows, data=True)
    console.table(
        "", ("file", "bytes", "sha256"),
        [(member.path, str(member.size), member.sha256) for member in checked.contents.members], data=True,
    )
    return 0


@bundle.command("verify")
@click.argument("file", type=_PATH)
@bundle_key
@common
@verb
def bundle_verify(console: Console, settings: Settings, *, file: Path, **_: Any) -> int:
    """Compare every byte of a bundle with its contents, and its signature with the key given."""
    checked = _check(console, settings, file)
    if console.as_json:
        console.data({"bundle": {"digest": checked.digest, "signature": _signature(checked), "whole": True}})
    else:
        console.text(f"{file}: whole, {_signature(checked)}\ncontents sha256 {checked.digest}")
    return 0


def _check(console: Console, settings: Settings, file: Path) -> Any:
    from kwdb_build.source.bundle import check_bundle

    with console.step(1, 1, f"check the bundle {file.name}"):
        checked = check_bundle(file.absolute(), key=settings.bundle_key, progress=console)
        console.update(f"{len(checked.contents.members)} files, whole")
    return checked


def _signature(checked: Any) -> str:
    if checked.signed:
        return "signed by the key given"
    return "signed (not checked: no --bundle-key)" if checked.signature else "not signed"
