"""Source to artifact: the part of an upgrade that also makes sense alone (`fetch`, `check`, `build`)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from kwdb_build.build.store import ArtifactStore
from kwdb_build.errors import ArtifactError, DependencyError, UsageError
from kwdb_build.files import human_bytes, private_directory
from kwdb_build.model import BuildOptions, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.reproducible import Comparison
    from kwdb_build.build.runner import Bench, Wishes
    from kwdb_build.build.signing import Signer
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.engine.base import Engine
    from kwdb_build.model import Artifact, CheckResult, SourceTree, Toolchain
    from kwdb_build.source.fetch import SourceRequest
    from kwdb_build.source.gather import SourceChoice

_LEAST_MEMORY_BYTES = 16 << 20
_LEAST_CACHE_BYTES = 16 << 20
_LEAST_CPUS = 0.01
"""What the kernel's control groups can give."""


class Workshop:
    """Fetches, checks and builds with one set of settings; each step's log is a file in `logs`."""

    def __init__(self, settings: Settings, console: Console, logs: Path) -> None:
        self._settings = settings
        self._console = console
        self._logs = logs
        self.store = ArtifactStore(settings.home / "artifacts")

    @cached_property
    def engine(self) -> Engine:
        """The engine, asked for only when something must be built; which one it is gets said."""
        from kwdb_build.engine.choose import choose

        return choose(
            self._settings.engine, docker_host=self._settings.docker_host, place=self._settings.home / "sandbox",
            say=lambda text: self._console.note(f"  {text}"),
        )

    def log(self, name: str) -> Path:
        """Log file of one piece of work."""
        return private_directory(self._logs) / f"{name}.log"

    def fetch(
        self, ref: str, *, url: str, redirects: tuple[str, ...], choice: SourceChoice | None = None
    ) -> SourceTree:
        """Have the source of a reference, or what was chosen in its place, in the home's source cache."""
        from kwdb_build.source.gather import SourceChoice, gather

        request = source_request(self._settings, ref, url=url, redirects=redirects)
        return gather(
            request, choice or SourceChoice(), home=self._settings.home, progress=self._console, log=self.log("fetch")
        )

    def toolchain(self, tree: SourceTree) -> Toolchain:
        """The toolchain of the settings, or the one that serves the tree's version."""
        return choose_toolchain(self._settings, tree)

    def image(self, tree: SourceTree) -> str:
        """Identity of the build image, made when it is not there.

        When packages of the lock are gone from the mirrors, a new lock is made for this home, and `toolchain` gives
        the toolchain with that lock from then on.
        """
        from kwdb_build.toolchain.exchange import take_along
        from kwdb_build.toolchain.image import prepare_image

        take_along(self.toolchain(tree), engine=self.engine, progress=self._console)
        if self._settings.offline:
            self._require_image(self.toolchain(tree))
        return prepare_image(
            self.toolchain(tree), engine=self.engine, settings=self._settings, progress=self._console,
            log=self.log("image"),
        ).image_id

    def _require_image(self, toolchain: Toolchain) -> None:
        """DependencyError when the image is neither in the engine nor can be made of what lies below home."""
        from kwdb_build.toolchain.base_image import base_digest

        base = self._settings.home / "images" / f"base-{base_digest(toolchain)}.tar"
        if self.engine.image_id(toolchain.image_tag) is None and not base.is_file():
            raise DependencyError(
                f"offline, and the build image {toolchain.image_tag} is not here",
                hint="use a bundle that was made with its image, or bring it: `kwdb-build toolchain export NAME FILE` "
                "on a machine with network, `kwdb-build toolchain import FILE` here",
            )

    def check(self, tree: SourceTree) -> tuple[CheckResult, ...]:
        """Rows of the dependency check of the build image, whatever their verdicts."""
        from kwdb_build.toolchain.check import Subject, check
        from kwdb_build.toolchain.probe import probe_image
        from kwdb_build.toolchain.requirements import Phase, read_requirements

        image = self.image(tree)
        requirements = read_requirements(tree.path)
        toolchain = self.toolchain(tree)
        facts = probe_image(
            self.engine, image, self.log("check"), requirements=requirements, environment=toolchain.environment,
            known=self._settings.home / "images",
        )
        return check(requirements.only(Phase.COMPILE), facts, Subject(group="image", toolchain=toolchain.name))

    def options(self) -> BuildOptions:
        """Build options of the settings; UsageError for one that the recipe does not take."""
        from kwdb_build.build import recipe

        cmake = recipe.parse_variables(self._settings.cmake_var, option="--cmake-var")
        options = BuildOptions(
            build_type=self._settings.build_type, jobs=self._settings.jobs,
            make_variables=recipe.parse_variables(self._settings.make_var, option="--make-var"),
            cmake_variables=recipe.asan(cmake) if self._settings.asan else cmake,
        )
        recipe.check_options(options)
        _check_asan(options.make_variables, cmake if self._settings.asan else ())
        recipe.parse_size(self._settings.memory)
        return options

    def require_sound(self) -> None:
        """UsageError for a setting that no build could be made with, before anything is fetched or made for it."""
        from kwdb_build.build.recipe import parse_size
        from kwdb_build.build.signing import parse_signer
        from kwdb_build.toolchain import load

        settings = self._settings
        self.options()
        if 0 < (memory := parse_size(settings.memory)) < _LEAST_MEMORY_BYTES:
            raise UsageError(
                f"no compiler runs within {human_bytes(memory)} of memory (--memory {settings.memory})",
                hint="KWDB needs up to 0.9 GB for each C++ compiler, and 2 GB for Go's link: such as --memory 8g",
            )
        if 0 < parse_size(settings.cache_size) < _LEAST_CACHE_BYTES:
            raise UsageError(
                f"a cache of {settings.cache_size} keeps nothing (cache_size)",
                hint="at least 16m, such as 10g; --no-cache goes without",
            )
        if 0 < settings.cpus < _LEAST_CPUS:
            raise UsageError(
                f"a build cannot run on {settings.cpus:g} processors (--cpus)", hint="at least 0.01, or 0: all"
            )
        if settings.sign:
            parse_signer(settings.sign, passphrase_file=settings.sign_passphrase_file)
        if settings.toolchain:
            load.find(settings.toolchain, search=load.toolchains_root())

    def find(self, tree: SourceTree) -> Artifact | None:
        """The stored build of this tree, if there is one."""
        from kwdb_build.build.key import build_key

        return self.store.find(build_key(tree, self.toolchain(tree), self.options()))

    def look_up(self, tree: SourceTree) -> Artifact | None:
        """As find(), for who goes on to use it: an unreadable one is set aside (ArtifactError)."""
        from kwdb_build.build.key import build_key

        return self.store.look_up(build_key(tree, self.toolchain(tree), self.options()))

    def build(self, tree: SourceTree, wishes: Wishes | None = None) -> Artifact:
        """The artifact of this tree: looked up, or built."""
        from kwdb_build.build.runner import build
        from kwdb_build.build.signing import parse_signer

        settings = self._settings
        signer = parse_signer(settings.sign, passphrase_file=settings.sign_passphrase_file) if settings.sign else None
        artifact = None if wishes and wishes.tests else self.look_up(tree)
        if artifact is not None:
            self.store.hold(artifact)
            self._console.update(f"{artifact.key.short} was already built")
        else:
            bench = self._bench(tree, wishes)
            artifact = build(
                tree, toolchain=bench.toolchain, image=bench.image, options=bench.options, engine=bench.engine,
                store=self.store, work_dir=bench.work_dir, log=bench.log, progress=self._console,
                settings=self._settings, wishes=wishes,
            )
            self._console.update(f"{artifact.version}, key {artifact.key.short}, {len(artifact.files)} files")
        if signer is not None:
            self._sign(artifact, signer)
        require_runs_here(artifact)
        return artifact

    def verify_reproducible(self, tree: SourceTree, artifact: Artifact, wishes: Wishes | None = None) -> Comparison:
        """Build a second time under other conditions and compare; NotReproducibleError says what differs and why."""
        from kwdb_build.build.reproducible import verify

        built_at = artifact.path.stat().st_mtime
        return verify(artifact, self._bench(tree, wishes), began=built_at)

    def _bench(self, tree: SourceTree, wishes: Wishes | None) -> Bench:
        from kwdb_build.build.runner import Bench, Wishes

        image = self.image(tree)  # before the toolchain is asked for: it may get a new lock
        return Bench(
            tree=tree, toolchain=self.toolchain(tree), image=image, options=self.options(), engine=self.engine,
            work_dir=self._settings.home / "work", log=self.log("build"), progress=self._console,
            settings=self._settings, wishes=wishes or Wishes(),
        )

    def _sign(self, artifact: Artifact, signer: Signer) -> None:
        """Sign a build; a signature of that kind which is there already stays, whoever made it."""
        from kwdb_build.build.inspection import SignedAlreadyError, sign_build

        try:
            path = sign_build(self.store, artifact, signer)
        except SignedAlreadyError as error:
            self._console.note(f"  not signed again: {error.context} is there (`artifact sign --replace` replaces it)")
        else:
            self._console.note(f"  signed: {path}")


def _check_asan(make: tuple[tuple[str, str], ...], beside_asan: tuple[tuple[str, str], ...]) -> None:
    """UsageError for the sanitizer's switch by another way than --asan, which runs the result with what it needs."""
    if any(name == "WITH_ASAN" for name, _ in make):
        raise UsageError("make variable 'WITH_ASAN' cannot be set", hint="--asan builds with the address sanitizer")
    for name, value in beside_asan:
        if name == "WITH_ASAN" and value != "ON":
            raise UsageError(f"--asan and --cmake-var WITH_ASAN={value} contradict each other", hint="leave one out")


def source_request(settings: Settings, ref: str, *, url: str, redirects: tuple[str, ...]) -> SourceRequest:
    """What to fetch, how and from where, as the settings say; UsageError for a profile or redirect that is none."""
    from kwdb_build.source.fetch import SourceRequest
    from kwdb_build.source.profiles import Policy, profiles_of
    from kwdb_build.source.reference import parse_redirect
    from kwdb_build.source.signature import SignatureRule

    pairs = tuple(parse_redirect(pair) for pair in redirects)
    return SourceRequest(
        url=url, ref=ref, redirects=pairs,
        profiles=profiles_of(settings.profile, settings.profiles, home=settings.home.absolute(), redirects=pairs),
        policy=Policy(hosts=settings.allowed_hosts, schemes=settings.allowed_schemes),
        remote_submodules=settings.submodules == "remote", offline=settings.offline, skip=settings.skip,
        signature=SignatureRule(
            require=settings.require_signature, allowed_signers=settings.allowed_signers, keyring=settings.keyring
        ),
        stall_timeout_s=settings.stall_timeout_s,
    )


def choose_toolchain(settings: Settings, tree: SourceTree) -> Toolchain:
    """The toolchain of the settings, or the one that serves the tree's version, with the lock that counts here."""
    from kwdb_build.toolchain import load

    root = load.toolchains_root()
    if settings.toolchain:
        return load.load(settings.toolchain, search=root, home=settings.home, base_image=settings.base_image)
    from kwdb_build.build.host import host_glibc

    return load.choose(
        tree.version, search=root, home=settings.home, base_image=settings.base_image, host_glibc=host_glibc()
    )


def fetched(tree: SourceTree) -> str:
    """What came of a fetch, in a line."""
    if tree.origin in {"archive", "directory"}:
        where = f"files {tree.content[:12]}, {len(tree.submodules)} submodules"
    else:
        moved = sum(bool(module.pinned) for module in tree.submodules)
        pinned = f"{len(tree.submodules) - moved} submodules pinned" + (f", {moved} not" if moved else "")
        where = f"at {tree.commit[:12]}, {pinned}"
    return f"{tree.version} {where}{''.join(f', {words}' for words in additions(tree))}"


def additions(tree: SourceTree) -> tuple[str, ...]:
    """What is on top of a tree's commits: '2 patches', '1 uncommitted change'."""
    counted = ((len(tree.patches), "patch", "es"), (len(tree.changed), "uncommitted change", "s"))
    return tuple(f"{count} {word}{many if count > 1 else ''}" for count, word, many in counted if count)


def summary(rows: tuple[CheckResult, ...]) -> str:
    """How many rows have which verdict: '9 ok, 1 skip'."""
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in Verdict}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def require_missing_nothing(rows: tuple[CheckResult, ...], log: Path) -> None:
    """DependencyError that names every failed row and its remedy; unknown rows are told, but do not stop a build."""
    from kwdb_build.upgrade.examination import GROUPS

    failed = [row for row in rows if row.verdict == Verdict.FAIL]
    if failed:
        places = ", ".join(dict.fromkeys(GROUPS.get(row.group, row.group) for row in failed))
        raise DependencyError(
            f"something is missing ({places}): {', '.join(row.name for row in failed)}",
            context="\n".join(f"{row.name}: wanted {row.required or 'it'}; {row.found or 'nothing'}" for row in failed),
            hint="; ".join(dict.fromkeys(row.fix for row in failed if row.fix)) or "choose another --toolchain",
            log=log,
        )


def require_runs_here(artifact: Artifact) -> None:
    """ArtifactError when this host cannot load the new binary, or it cannot even print its version."""
    from kwdb_build.build.host import check_links, host_facts
    from kwdb_build.build.recipe import asan_environment
    from kwdb_build.command import CommandError, run

    failed = [row for row in check_links(artifact, host_facts()) if row.verdict == Verdict.FAIL]
    if failed:
        raise ArtifactError(
            f"this host cannot load {artifact.version}: {', '.join(row.name for row in failed)}",
            context="\n".join(f"{row.name}: {row.required} wanted; {row.found}" for row in failed),
            hint="; ".join(dict.fromkeys(row.fix for row in failed)),
        )
    try:
        run(
            [str(artifact.kwbase), "version"], timeout_s=60,
            env={
                "LD_LIBRARY_PATH": str(artifact.path / "lib"), "PATH": "/usr/bin:/bin", "LC_ALL": "C",
                **asan_environment(artifact.key.inputs.get("options", {}).get("cmake_variables", ())),
            },
        )
    except CommandError as error:
        raise ArtifactError(
            "the new binary does not run on this host", context=error.context or error.message,
            hint="install the missing runtime library, or build with a toolchain of an older distribution",
        ) from error
