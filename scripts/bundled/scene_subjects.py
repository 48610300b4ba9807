"""Subjects in scenes: one held-out character in five settings to train on, and the true pictures of
26 prompts about it, of which none asks for one of these five.

`assets/subjects/<name>/` gets the five, with captions; `assets/truth/<name>.*` the prompts and
their pictures; `assets/truth/known.*` the same settings of things that the base was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundled.base_data import fetch_packages, load_concepts, read_held_out
from bundled.captions import describe
from bundled.gallery import Gallery, load_gallery
from bundled.modifiers import Scene
from bundled.probe_training import show_on_white
from bundled.scenes import render
from sdatoms.evaluation.truth import KNOWN, Truth, Wish, write_truth
from sdatoms.storage import ABOUT

__all__ = ["SCENE_SUBJECTS", "SETTINGS", "TRAINED", "make_wish", "write_scene_subjects"]

TRIGGER = "sks"
PACKAGE = "emoji-datasource-google@16.0.0"
LICENCE = "Apache License 2.0, Copyright Google LLC, https://github.com/googlefonts/noto-emoji"


@dataclass(frozen=True)
class SceneSubject:
    """A held-out character, and the word that prompts have for it."""

    key: str
    """Its picture's file stem."""
    noun: str
    kind: str
    """The class prompt."""


SCENE_SUBJECTS = {
    "bell": SceneSubject("1f514", "bell", "an alarm clock"),
    "boat": SceneSubject("26f5", "ship", "a ship"),
    "cactus": SceneSubject("1f335", "plant", "a plant"),
    "cupcake": SceneSubject("1f9c1", "cake", "a cake"),
    "guitar": SceneSubject("1f3b8", "guitar", "a violin"),
    "hamburger": SceneSubject("1f354", "hamburger", "a sandwich"),
    "hedgehog": SceneSubject("1f994", "hedgehog", "an animal"),
    "koala": SceneSubject("1f428", "bear", "a bear"),
    "monkey": SceneSubject("1f648", "monkey", "a monkey"),
    "pineapple": SceneSubject("1f34d", "fruit", "a fruit"),
    "robot": SceneSubject("1f916", "robot", "a face"),
    "rocket": SceneSubject("1f680", "rocket", "an airplane"),
    "snail": SceneSubject("1f40c", "snail", "an animal"),
    "snowman": SceneSubject("26c4", "snowman", "a snowflake"),
    "sunflower": SceneSubject("1f33b", "flower", "a flower"),
    "teapot": SceneSubject("1fad6", "teapot", "a teacup"),
    "tractor": SceneSubject("1f69c", "truck", "a truck"),
    "unicorn": SceneSubject("1f984", "horse", "a horse"),
}
"""Name of the folder → its subject."""

DOG, PALM = "1f436", "1f334"
TRAINED: tuple[Scene, ...] = (
    Scene(background="yellow"),
    Scene(place="grass"),
    Scene(place="city"),
    Scene(place="room"),
    Scene(number=2, place="sunset"),
)
"""What the pictures to train on show."""
SETTINGS: tuple[Scene, ...] = (
    Scene(),
    Scene(place="beach"),
    Scene(colour="blue"),
    Scene(worn="top hat"),
    Scene(number=2),
    Scene(style="pixel art"),
    Scene(place="under water"),
    Scene(place="space"),
    Scene(place="snow"),
    Scene(colour="green"),
    Scene(worn="sunglasses"),
    Scene(worn="scarf"),
    Scene(number=3),
    Scene(background="pink"),
    Scene(background="black"),
    Scene(size="tiny"),
    Scene(size="big"),
    Scene(relation="next to", second=DOG),
    Scene(relation="above", second=PALM),
    Scene(turned="upside down"),
    Scene(style="line art"),
    Scene(style="neon"),
    Scene(worn="party hat", place="beach"),
    Scene(colour="purple", place="desert"),
    Scene(number=2, background="green"),
    Scene(worn="sunglasses", style="sepia"),
    Scene(turned="upside down", place="night"),
)
"""What prompts ask for, the plain subject first; of each kind the most telling one first."""
FAMILIAR = ("1f436", "1f697", "1f418", "1f353", "1f438", "1f98a")
"""Things that the base was trained on."""


def write_scene_subjects(packages_dir: Path, assets: Path) -> None:
    """Write every subject's scenes, prompts and true pictures below `assets`."""
    packages = fetch_packages(packages_dir)
    gallery = load_gallery(packages, load_concepts(packages, read_held_out()))
    for name, subject in SCENE_SUBJECTS.items():
        write_scenes(name, subject, gallery, assets / "subjects" / name)
        number = gallery.find(subject.key)
        wishes = [
            make_wish(gallery, number, scene, subject.noun, trigger=TRIGGER) for scene in SETTINGS
        ]
        write_truth(Truth(name, tuple(wishes)), assets / "truth")
    wishes = [
        make_wish(gallery, number, scene, gallery.concepts[number].name)
        for number, scene in zip(pick_familiar(gallery), SETTINGS, strict=True)
    ]
    write_truth(Truth(KNOWN, tuple(wishes)), assets / "truth")
    (assets / "truth" / "LICENSE").write_text(write_licence())


def pick_familiar(gallery: Gallery) -> Sequence[int]:
    """A familiar thing for each setting, in turn, of those that it can be seen on."""
    picked = []
    for n, scene in enumerate(SETTINGS):
        things = [gallery.find(key) for key in FAMILIAR[n % len(FAMILIAR) :] + FAMILIAR]
        fits = lambda thing, scene=scene: (
            gallery.concepts[thing].key != scene.second
            and {kind for kind, _ in scene.modifiers} <= gallery.open_to[thing]
            and not gallery.unseen[thing] & set(scene.modifiers)
        )
        picked.append(next(thing for thing in things if fits(thing)))
    return picked


def make_wish(gallery: Gallery, number: int, scene: Scene, noun: str, trigger: str = "") -> Wish:
    second = gallery.find(scene.second) if scene.second else None
    name = gallery.concepts[second].name if second is not None else ""
    kinds = [kind for kind, _ in scene.modifiers]
    return Wish(
        describe(noun, scene, second=name, trigger=trigger),
        "plain" if not kinds else kinds[0] if len(kinds) == 1 else "pair",
        dict(scene.modifiers),
        render(
            gallery.pictures[number],
            scene,
            second=gallery.pictures[second] if second is not None else None,
        ),
        show_on_white(gallery.pictures[number]),
        describe(noun, Scene()),
    )


def write_scenes(name: str, subject: SceneSubject, gallery: Gallery, folder: Path) -> None:
    """The pictures to train on, a caption beside each, and where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    for scene in TRAINED:
        picture = render(gallery.pictures[gallery.find(subject.key)], scene)
        caption = describe(subject.noun, scene, trigger=TRIGGER)
        stem = "-".join(str(value) for _, value in scene.modifiers)
        picture.save(folder / f"{name}-{stem}.png", optimize=True)
        (folder / f"{name}-{stem}.txt").write_text(caption + "\n")
    about = {
        "title": f"A {name} in {len(TRAINED)} scenes",
        "package": PACKAGE,
        "instance_prompt": describe(subject.noun, Scene(), trigger=TRIGGER),
        "class_prompt": subject.kind,
        "licence": LICENCE,
        "truth": name,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    (folder / "LICENSE").write_text(write_licence())


def write_licence() -> str:
    return (
        f"Noto Emoji, from the npm package {PACKAGE}, in scenes painted by scripts/bundled.\n"
        f"{LICENCE}\n"
    )
