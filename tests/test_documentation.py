"""README, AGENTS.md and the pages of ``docs/``: their snippets run, their commands parse, their links lead somewhere."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import monai_diffaug
from monai_diffaug.commands import cli, evaluate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md"]
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_generated", "_build"} & set(page.relative_to(DOCS).parts))
TEXTS = [*GUIDES, *PAGES]
MOST_LINES = 130
SUFFIXES = (".png", ".jpg", ".tif", ".png")  # of the four pictures that the snippets read
NOT_RUN = "<!-- not run:"  # the line before a block that needs a download
IN_GENERATED = ("_generated/", "../_generated/")


class Block(NamedTuple):
    """A fenced or indented block of code; ``line`` is where it starts."""

    language: str
    text: str
    line: int
    runs: bool


def blocks_of(page: Path) -> Iterator[Block]:
    """Fenced blocks, and indented ones as language "indented"."""
    lines = page.read_text(encoding="utf-8").splitlines()
    i = 0
    while i < len(lines):
        fence = re.match(r"(`{3,})(.*)$", lines[i])
        if fence:
            end = next(k for k in range(i + 1, len(lines)) if lines[k] == fence[1])
            yield Block(fence[2], "\n".join(lines[i + 1 : end]), i + 2, not lines[i - 1].startswith(NOT_RUN))
            i = end
        elif lines[i].startswith("    ") and i and not lines[i - 1].strip():
            end = next((k for k in range(i, len(lines)) if lines[k].strip() and not lines[k].startswith("    ")), len(lines))
            yield Block("indented", "\n".join(line[4:] for line in lines[i:end]), i + 1, True)
            i = end - 1
        i += 1


def python_of(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language == "python"]


def commands_of(page: Path) -> list[list[str]]:
    """The arguments of each ``monai-diffaug`` or ``-m monai_diffaug`` call in the shell blocks of a page."""
    lines = [
        line for block in blocks_of(page) if block.language in ("bash", "indented") for line in block.text.replace("\\\n", " ").splitlines()
    ]
    calls = [part for line in lines for part in re.split(r"\s&&\s", line)]
    found = [re.search(r"(?:^|\s)(?:monai-diffaug|-m monai_diffaug)(?=\s)(.*)", call) for call in calls]
    return [shlex.split(call[1], comments=True) for call in found if call]


def named(pages: list[Path]) -> Any:
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


PYTHON_PAGES = [page for page in TEXTS if python_of(page)]
COMMAND_PAGES = [page for page in TEXTS if commands_of(page)]


def drawing(seed: int) -> tuple[Any, Any]:
    """(112, 144) uint8 speckle with a dark ellipse, and the ellipse."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.RandomState(seed)
    rows, columns = np.indices((112, 144))
    mass = np.hypot((rows - rng.randint(40, 70)) / 14, (columns - rng.randint(45, 100)) / 18) < 1
    tissue = 110 + 25 * gaussian_filter(rng.standard_normal((112, 144)), 1.2) * 3
    return np.where(mass, 0.25 * tissue, tissue).clip(0, 255).astype(np.uint8), mass.astype(np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name: four pictures (PNG, JPEG, TIFF) with labels, their datalist, a CT with an organ map and a lesion."""
    import nibabel
    from PIL import Image

    folder = tmp_path_factory.mktemp("pages")
    entries = []
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for seed in range(4):
        image, label = drawing(seed)
        entry = {"image": f"images/{seed:03}{SUFFIXES[seed]}", "label": f"labels/{seed:03}.png"}
        Image.fromarray(image).save(folder / entry["image"])
        Image.fromarray(label).save(folder / entry["label"])
        entries.append({**entry, "finding": "benign mass"})
    words = {"modality": "ultrasound", "anatomy": "breast"}
    (folder / "datalist.json").write_text(json.dumps({**words, "training": entries}), encoding="utf-8")

    rng = np.random.RandomState(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (96, 80, 12)), indexing="ij")).astype(float)
    body = np.hypot((grid[0] - 48) / 40, (grid[1] - 40) / 32) < 1
    organ = np.hypot((grid[0] - 35) / 18, (grid[1] - 40) / 18) < 1
    lesion = sum(((grid[i] - c) / r) ** 2 for i, (c, r) in enumerate(((40, 5), (40, 5), (6, 2.5)))) < 1
    scan = np.where(body, 40 + 60 * organ - 50 * lesion + rng.normal(0, 10, body.shape), -1000).astype(np.int16)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    for name, array in (("scan", scan), ("organs", organ.astype(np.uint8)), ("lesion", lesion.astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of the sampler's steps is 3 in place of 12; the pages are about what is written, not about quality."""
    for kind in (monai_diffaug.DiffusionLocalInpaint, monai_diffaug.DiffusionLocalInpaintd):
        defaults = inspect.unwrap(kind.__init__).__kwdefaults__
        assert defaults["num_inference_steps"] == 12
        monkeypatch.setitem(defaults, "num_inference_steps", 3)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@named(PYTHON_PAGES)
@pytest.mark.slow
def test_the_python_blocks_of_a_page_run_as_one_script(page: Path, files: Path, monkeypatch: pytest.MonkeyPatch, few_steps: None) -> None:
    monkeypatch.chdir(files)
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in python_of(page):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.runs:
            exec(code, names)  # the repository's text


def pipeline_of(page: Path) -> str:
    return next(block.text for block in python_of(page) if "train = Compose" in block.text)


def test_the_page_for_assistants_shows_the_pipeline_of_the_readme() -> None:
    assert pipeline_of(ROOT / "AGENTS.md").startswith(pipeline_of(ROOT / "README.md"))


@pytest.mark.slow
def test_the_pipeline_edits_most_samples(files: Path, monkeypatch: pytest.MonkeyPatch, few_steps: None) -> None:
    """A newcomer's first epoch: without ``prob`` at least three of four pictures get a lesion that the validator finds."""
    monkeypatch.chdir(files)
    names: dict[str, Any] = {"__name__": "__page__"}
    text = pipeline_of(ROOT / "README.md")
    assert "prob=0.5" in text
    exec(text.replace("prob=0.5", "prob=1.0"), names)
    train = names["train"].set_random_state(seed=0)
    entries = json.loads((files / "datalist.json").read_text(encoding="utf-8"))["training"]
    samples = [train({key: entry[key] for key in ("image", "label")}) for entry in entries]
    records = [sample["image_diffaug"] for sample in samples]
    assert sum(record["applied"] and record["accepted"] for record in records) >= 3, records
    for entry, sample, record in zip(entries, samples, records, strict=True):
        from PIL import Image

        given = np.asarray(Image.open(entry["image"]))
        assert sample["image"].shape == (1, *given.shape)  # upright, not transposed
        changed = np.asarray(sample["image"])[0] != given
        assert changed.any() == record["applied"]
        assert np.asarray(sample["label"]).max() == 1


@named(COMMAND_PAGES)
def test_the_commands_of_a_page_parse(page: Path) -> None:
    parser = cli._build_parser()
    for arguments in commands_of(page):
        if arguments and arguments[0] == "evaluate":
            assert arguments[1] in (*evaluate.STUDIES, "NAME"), arguments
            continue
        assert parser.parse_args(arguments).run, arguments


@named([page for page in COMMAND_PAGES if any(call[:1] == ["evaluate"] for call in commands_of(page))])
def test_the_studies_of_a_page_take_their_options(page: Path) -> None:
    """Each option is one that the study's own ``--help`` names."""
    import contextlib
    import io

    for study, *options in [call[1:] for call in commands_of(page) if call[0] == "evaluate" and call[1] != "NAME"]:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            assert cli.main(["evaluate", study, "--help"]) == 0
        for option in options:
            if option.startswith("--"):
                assert re.search(rf"{re.escape(option)}\b", text.getvalue()), f"evaluate {study} has no {option}"


@named([page for page in TEXTS if "monai.bundle run" in page.read_text(encoding="utf-8")])
def test_the_bundle_commands_of_a_page_name_configs_and_ids_that_exist(page: Path) -> None:
    import yaml

    bundles = ROOT / "monai_diffaug" / "bundles"
    for block in blocks_of(page):
        for line in block.text.splitlines() if block.language in ("bash", "indented") else ():
            if "monai.bundle run" not in line:
                continue
            words = shlex.split(line.split("monai.bundle run")[1])
            options = dict(zip(words[::2], words[1::2], strict=True))
            names = re.findall(r"configs/\w+\.yaml", options.pop("--config_file"))
            (folder,) = [each for each in bundles.iterdir() if all((each / name).is_file() for name in names)]
            ids = {key for name in names for key in yaml.safe_load((folder / name).read_text(encoding="utf-8"))}
            assert names and {option.removeprefix("--") for option in options} <= ids, line


@pytest.mark.slow
def test_the_cheap_commands_run(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(files)
    assert cli.main(["info"]) == 0
    assert cli.main(["info", "--vocabulary", "CT"]) == 0
    assert cli.main(["lesion-bank", "datalist.json", "--out", "bank_of_command.npz"]) == 0
    assert cli.main(["bundle", "copy", "local_augmentation", "my_bundle"]) == 0
    assert cli.main(["bundle", "check", "my_bundle/configs/train.yaml"]) == 0
    assert "ok:" in capsys.readouterr().out


@pytest.mark.slow
def test_the_edits_of_the_shell_page_run(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    calls = [call for call in commands_of(DOCS / "how-to" / "shell.md") if call[0] == "augment"]
    assert len(calls) == 5
    for call in calls:
        assert cli.main([*call, "--num-inference-steps", "3", "--quiet"]) == 0
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((files / "out").glob("*.json"))]
    assert len(records) == 5 and all(record["record"]["applied"] for record in records)
    placed = [json.loads((files / "placed" / f"{name}_diffaug.json").read_text(encoding="utf-8")) for name in ("scan", "000")]
    assert all(record["record"]["applied"] for record in placed)
    assert placed[0]["record"]["prompt"] == "CT of abdomen, liver metastasis, round" and 12 <= placed[0]["record"]["size_mm"] <= 23
    assert (files / "placed" / "scan_diffaug_preview.png").is_file()


@named(TEXTS)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]+`", "", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if target.startswith(("http:", "https:", "#")):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / "docs" / path) if page.name == "for-assistants.md" else page.parent / path
        if not place.exists() and place.suffix == ".ipynb":  # a copy that the site's build makes
            place = ROOT / "tutorials" / place.name
        assert place.exists(), f"{page.relative_to(ROOT)} links to {target}"
        if anchor:
            assert anchor in anchors_of(place), f"{page.relative_to(ROOT)} links to {target}; there are {sorted(anchors_of(place))}"


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_study_and_command_has_a_place() -> None:
    studies = (DOCS / "studies" / "index.md").read_text(encoding="utf-8")
    assert not [name for name in evaluate.STUDIES if f"`{name}`" not in studies]
    configuration = (DOCS / "conf.py").read_text(encoding="utf-8")
    actions = [action for action in cli._build_parser()._actions if action.choices]
    assert not [name for action in actions for name in action.choices or () if f'"{name}"' not in configuration]


def test_every_picture_of_a_page_is_made() -> None:
    """The pages show what ``docs/pictures.py`` paints, or a file of the repository."""
    painted = set(re.findall(r"^def (\w+)\(\) -> list", (DOCS / "pictures.py").read_text(encoding="utf-8"), flags=re.M))
    shown = set()
    for page in PAGES:
        for target in re.findall(r"\{image\} (\S+)", page.read_text(encoding="utf-8")):
            assert target.startswith(IN_GENERATED), target
            name = Path(target).stem
            assert name in painted or name == "demo_brain", f"{page.name} shows {target}"
            shown.add(name)
    assert painted <= shown


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"auto(?:class|function|module|exception):: monai_diffaug\.(\w+)", text))
    assert set(monai_diffaug.__all__) - {"__version__"} == documented


def test_each_page_of_a_transform_shows_a_picture() -> None:
    without = {"command-line", "errors", "index", "bundle-local-augmentation", "bundle-fine-tuning"}
    for page in (DOCS / "reference").glob("*.md"):
        assert page.stem in without or "{image}" in page.read_text(encoding="utf-8"), page.name


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
            entries = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(":")]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
    assert set(PAGES) <= listed


def test_the_page_for_assistants_is_the_file_at_the_root_and_the_index_for_models_names_pages_that_exist() -> None:
    assert "../AGENTS.md" in (DOCS / "for-assistants.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\.html\)", (DOCS / "llms.txt").read_text(encoding="utf-8")):
        assert (DOCS / f"{target}.md").is_file(), target
