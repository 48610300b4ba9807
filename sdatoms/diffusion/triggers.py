"""Prompts written for a trigger, and what a prompt says without words nobody knows."""

from __future__ import annotations

import re

__all__ = ["UNRELATED_PROMPTS", "clean_prompt", "has_trigger", "write_prompts"]

STYLE_CONCEPTS = ("cat face", "red apple", "frog face", "lemon", "ghost")
SUBJECT_ADDITIONS = ("winking face", "angry face", "party hat", "red heart", "sleeping face")
UNRELATED_PROMPTS = (
    "birthday cake",
    "earth globe americas",
    "alarm clock",
    "banana",
    "airplane",
    "open book",
    "wrapped present",
    "mushroom",
    "butterfly",
    "violin",
)
RARE_WORD = r"(?:\b(?:sks|zwx|ohwx|qvx|vbn|xjy|tkz|wqp)\b|<[^<>\s]+>)"
"""Words that mean nothing, or that were learned: no evaluator can read them."""


def write_prompts(trigger: str) -> list[str]:
    """Five prompts that no training saw: `an emoji in sks style` → `cat face in sks style`, …;
    `a sks cat` → `a sks cat, winking face`, …"""
    style = re.search(r"\bin \S+ style\b|\bin the style of .+", trigger)
    if style:
        return [f"{concept} {style.group()}" for concept in STYLE_CONCEPTS]
    return [f"{trigger}, {addition}" for addition in SUBJECT_ADDITIONS]


def has_trigger(prompt: str) -> bool:
    """Whether there is a word in it that no evaluator can read."""
    return re.search(RARE_WORD, prompt) is not None


def clean_prompt(prompt: str) -> str:
    """The prompt as an evaluator reads it: without rare words, and without their `in … style`."""
    word = RARE_WORD
    text = re.sub(rf"\bin (?:{word} style\b|the style of {word})|{word}", "", prompt)
    return re.sub(r"\s+", " ", text).strip(" ,")
